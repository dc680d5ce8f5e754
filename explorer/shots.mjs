// Look at the built site in headless Chromium: node shots.mjs [SITE [OUT]], by default ../build/site and ../build/shots.
//
// Each page, at the widths of a desktop and of a phone, light and dark, becomes a PNG of OUT. It must not be wider than its
// window, complain, ask for anything outside of its folder or in vain, show a formula as its source, nor text that hardly
// differs from what is behind it. What is wrong is printed; the exit status is 1 if anything is.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const site = resolve(process.argv[2] ?? join(root, "build", "site"));
const out = resolve(process.argv[3] ?? join(root, "build", "shots"));
const WIDTHS = [1280, 390];
const HEIGHT = 2400; // pixels of a picture, from the page's top
const LEAST_CONTRAST = 3; // WCAG's least for large text
const PAGES = [
  "index",
  "learn/ten-minutes",
  "gallery",
  "explorer",
  "api/solvers",
  "api/diffusions",
  "solvers",
  "diffusions",
  "command-line",
  "posteriors",
];

// In the page: what a reader would stumble over.
function look(leastContrast) {
  const found = [];
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 0) {
    const scrolls = (element) =>
      element &&
      element !== document.body &&
      (getComputedStyle(element).overflowX !== "visible" || scrolls(element.parentElement));
    const widest = [...document.querySelectorAll("article *")].find(
      (element) => element.getBoundingClientRect().right > window.innerWidth + 1 && !scrolls(element),
    );
    const name = widest ? `${widest.tagName} ${widest.className}: ${widest.textContent.slice(0, 60)}` : "unknown";
    found.push(`${wide} pixels wider than its window (${name})`);
  }
  for (const formula of document.querySelectorAll(".math"))
    if (!formula.querySelector("mjx-container") || formula.querySelector("[data-mjx-error]"))
      found.push(`a formula is not drawn: ${formula.textContent.slice(0, 80)}`);
  for (const image of document.querySelectorAll("article img"))
    if (image.complete && !image.naturalWidth) found.push(`an image is not drawn: ${image.getAttribute("src")}`);

  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parts = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = colour
      .slice(0, 3)
      .map((level) => (level / 255 <= 0.04045 ? level / 255 / 12.92 : ((level / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255];
  };
  const pairs = new Set();
  for (const element of document.querySelectorAll("article :is(p, li, code, pre, pre span, a, h1, h2, th, td, dt)")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (element.matches(".headerlink, .headerlink *") || !element.checkVisibility({ visibilityProperty: true }))
      continue;
    const [front, back] = [parts(getComputedStyle(element).color), behind(element)];
    const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    const key = `${front} on ${back}`;
    if (contrast < leastContrast && !pairs.has(key)) {
      pairs.add(key);
      found.push(`contrast ${contrast.toFixed(1)}, ${key}: ${element.textContent.trim().slice(0, 40)}`);
    }
  }
  return found;
}

const missing = PAGES.filter((page) => !existsSync(join(site, `${page}.html`)));
if (missing.length) {
  console.log(`${site} lacks ${missing.join(", ")}; make docs builds the site`);
  process.exit(2);
}
const withFormulas = readdirSync(site, { recursive: true })
  .filter((name) => name.endsWith(".html") && !name.startsWith("_"))
  .sort()
  .find((name) => readFileSync(join(site, name), "utf8").includes('class="math'));
const pages = [...new Set([...PAGES, ...(withFormulas ? [withFormulas.replace(/\.html$/, "")] : [])])];
mkdirSync(out, { recursive: true });
const inside = pathToFileURL(site).href;
const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  args: [...chromium.args, "--no-sandbox"],
  headless: "shell",
});
let [wrong, count] = [0, 0];
try {
  for (const scheme of ["light", "dark"])
    for (const width of WIDTHS) {
      const page = await browser.newPage();
      await page.setViewport({ width, height: 900 });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      let found = [];
      page.on("pageerror", (error) => found.push(String(error)));
      page.on("console", (message) => message.type() === "error" && found.push(message.text()));
      page.on("requestfailed", (request) => found.push(`${request.url()}: ${request.failure()?.errorText}`));
      page.on("request", (request) => {
        if (!/^(data|blob|about):/.test(request.url()) && !request.url().startsWith(inside))
          found.push(`asks for ${request.url()}`);
      });
      for (const name of pages) {
        found = [];
        await page.goto(`${inside}/${name}.html`, { waitUntil: "load" });
        await page.evaluate("window.MathJax?.startup?.promise");
        found.push(...(await page.evaluate(look, LEAST_CONTRAST)));
        const tall = await page.evaluate("document.documentElement.scrollHeight");
        const clip = { x: 0, y: 0, width, height: Math.min(HEIGHT, tall) };
        const file = join(out, `${name.replaceAll("/", "_")}_${width}_${scheme}.png`);
        writeFileSync(file, await page.screenshot({ clip, captureBeyondViewport: true }));
        count += 1;
        for (const line of new Set(found)) console.log(`${name}, ${width} pixels, ${scheme}: ${line}`);
        wrong += new Set(found).size;
      }
      await page.close();
    }
} finally {
  await browser.close();
}
console.log(`${count} pictures in ${out}; ${wrong} things wrong`);
process.exit(wrong ? 1 : 0);
