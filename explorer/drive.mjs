// Drive the explorer in headless Chromium: node drive.mjs < wishes.json > answers.json
//
// wishes: {"url": "...", "width": 1200, "height": 900, "dark": false, "steps": [step, ...]}, a step being
//   {"do": "body of an async function of args, in the page", "args": ...}   its answer is kept
//   {"shot": "file.png"}                                                    a picture of the whole page
//   {"drag": "selector", "along": [[x, y], ...]}                            the mouse, held down, in pixels of the element
//   {"press": ["Tab", "Shift+Tab", ...]}                                    keys; its answer is what has the focus after each
// answers: {"answers": [...], "errors": ["what the page complained of", ...], "asked": ["every address it asked for"]}
import { writeFileSync } from "node:fs";
import { launch } from "./browser.mjs";

let text = "";
for await (const part of process.stdin.setEncoding("utf8")) text += part;
const wishes = JSON.parse(text);
const browser = await launch();
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
    else if (step.drag) {
      const { x, y } = await (await page.$(step.drag)).boundingBox();
      const [first, ...rest] = step.along.map(([dx, dy]) => [x + dx, y + dy]);
      await page.mouse.move(...first);
      await page.mouse.down();
      for (const place of rest) await page.mouse.move(...place);
      await page.mouse.up();
    } else if (step.press) {
      const focused = [];
      for (const combination of step.press) {
        const keys = combination.split("+");
        for (const held of keys.slice(0, -1)) await page.keyboard.down(held);
        await page.keyboard.press(keys.at(-1));
        for (const held of keys.slice(0, -1)) await page.keyboard.up(held);
        focused.push(await page.evaluate(() => document.activeElement?.id || document.activeElement?.tagName));
      }
      answers.push(focused);
    } else answers.push(await page.evaluate(`(async (args) => { ${step.do} })(${JSON.stringify(step.args ?? null)})`));
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify({ answers, errors, asked }));
