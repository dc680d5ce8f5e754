// Drive the explorer in headless Chromium: node drive.mjs < wishes.json > answers.json
//
// wishes: {"url": "...", "width": 1200, "height": 900, "dark": false, "steps": [step, ...]}, a step being
//   {"do": "body of an async function of args, in the page", "args": ...}   its answer is kept
//   {"shot": "file.png"}                                                    a picture of the whole page
// answers: {"answers": [...], "errors": ["what the page complained of", ...], "asked": ["every address it asked for"]}
import { writeFileSync } from "node:fs";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

let text = "";
for await (const part of process.stdin.setEncoding("utf8")) text += part;
const wishes = JSON.parse(text);
const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  args: [...chromium.args, "--no-sandbox"],
  headless: "shell",
});
const [answers, errors, asked] = [[], [], []];
try {
  const page = await browser.newPage();
  await page.setViewport({ width: wishes.width ?? 1200, height: wishes.height ?? 900 });
  if (wishes.dark) await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("request", (request) => asked.push(request.url()));
  await page.goto(wishes.url);
  for (const step of wishes.steps) {
    if (step.shot) writeFileSync(step.shot, await page.screenshot({ fullPage: true }));
    else answers.push(await page.evaluate(`(async (args) => { ${step.do} })(${JSON.stringify(step.args ?? null)})`));
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify({ answers, errors, asked }));
