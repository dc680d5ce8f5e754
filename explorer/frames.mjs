// How smoothly the explorer plays: node frames.mjs [seconds]; one JSON line, as measured on the machine that runs it.
//
// For each scene the page plays from noise to data in headless Chromium, which draws in software. "fps" counts frames,
// "script_ms" is the time that the page's own code takes in a frame, by the clock (mean, 95th percentile, most: other work
// on the machine counts), and "cpu_ms" the mean of the processor's time for it. A "busy" scene plays while the charts are
// being computed, whose code counts too.
import os from "node:os";
import { launch } from "./browser.mjs";

const seconds = Number(process.argv[2] ?? 3);
const PAGE = new URL("../scoresde/cli/explorer.html", import.meta.url).href;
const spiral = Array.from({ length: 200 }, (_, k) => {
  const [angle, radius] = [0.4 * k, 0.3 + 0.007 * k];
  return [radius * Math.cos(angle), radius * Math.sin(angle)].map((v) => Number(v.toFixed(2)));
}).flat();
const SCENES = {
  "1000 particles": { particles: 1000 },
  "4000 particles": { particles: 4000 },
  "4000 particles, 100 steps": { particles: 4000, steps: 100 },
  "4000 particles, 200 drawn components": { particles: 4000, target: "drawn", drawn: spiral },
  "three panels of 4000": { particles: 4000, beside: true },
  "three panels of 4000 on a line": { particles: 4000, beside: true, target: "three" },
  "1000 particles, busy": { particles: 1000, seed: 2, busy: true },
};

/** In the page, before its script: time what runs in each frame. */
function watch() {
  const real = window.requestAnimationFrame.bind(window);
  window.frames_seen = [];
  window.requestAnimationFrame = (call) =>
    real((now) => {
      const before = performance.now();
      call(now);
      const spent = performance.now() - before;
      const last = window.frames_seen.at(-1);
      if (last?.now === now) last.spent += spent;
      else window.frames_seen.push({ now, spent });
    });
}

/** In the page: play again and again for so many milliseconds, and say when frames came and what they took. */
async function play(span) {
  const button = document.getElementById("play");
  const wait = (ms) => new Promise((go) => setTimeout(go, ms));
  window.frames_seen.length = 0;
  const until = performance.now() + span;
  while (performance.now() < until) {
    if (button.textContent !== "Pause") button.click();
    await wait(50);
  }
  return window.frames_seen;
}

const round = (v) => Number(v.toFixed(2));
const quantile = (values, share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];

const browser = await launch();
const scenes = {};
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 1200, height: 900 });
  await page.evaluateOnNewDocument(watch);
  const meter = await page.createCDPSession();
  await meter.send("Performance.enable", { timeDomain: "threadTicks" });
  const cpu = async () => {
    const { metrics } = await meter.send("Performance.getMetrics");
    return metrics.find(({ name }) => name === "ScriptDuration").value;
  };
  for (const [name, { busy = false, ...state }] of Object.entries(SCENES)) {
    const hash = Object.entries(state).map(([key, value]) => `${key}=${encodeURIComponent(JSON.stringify(value))}`);
    await page.goto(`${PAGE}#${hash.join("&")}`);
    if (!busy) await page.evaluate("scoresde.settled()");
    const before = await cpu();
    const frames = await page.evaluate(play, 1000 * seconds);
    const used = (await cpu()) - before;
    if (frames.length < 2) throw new Error(`${name}: the browser showed no two frames; is the machine busy?`);
    const spent = frames.map((one) => one.spent).sort((a, b) => a - b);
    const length = (frames.at(-1).now - frames[0].now) / 1000;
    scenes[name] = {
      fps: round((frames.length - 1) / length),
      cpu_ms: round((1000 * used) / frames.length),
      script_ms: [spent.reduce((a, b) => a + b, 0) / spent.length, quantile(spent, 0.95), spent.at(-1)].map(round),
    };
    console.error(`${name}: ${JSON.stringify(scenes[name])}`);
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify({ machine: `${os.cpus().length} cores, ${os.cpus()[0]?.model}`, seconds, scenes }));
