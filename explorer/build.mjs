// Write the explorer as one HTML file: node build.mjs [--check]. With --check nothing is written, and another file fails.
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const here = new URL(".", import.meta.url);
const target = new URL("../scoresde/cli/explorer.html", here);
const read = (name) => readFileSync(new URL(name, here), "utf8");

const bundled = await build({
  entryPoints: [new URL("src/main.ts", here).pathname],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  write: false,
});
const script = bundled.outputFiles[0].text.replaceAll("</script", "<\\/script").trim();
const parts = { STYLE: read("src/style.css").trim(), NETWORK: read("network.json").trim(), SCRIPT: script };
// A function, since a replacement text would read "$&" and the like as its own.
const page = Object.entries(parts).reduce(
  (text, [name, part]) => text.replace(`/*${name}*/`, () => part),
  read("src/page.html"),
);
if (page.length > 1_000_000) throw new Error(`the explorer has ${page.length} bytes, more than a megabyte`);
if (process.argv.includes("--check")) {
  if (readFileSync(target, "utf8") !== page)
    throw new Error("scoresde/cli/explorer.html is not what its sources make; run npm run build in explorer/");
} else writeFileSync(target, page);
console.log(`explorer.html: ${Math.ceil(page.length / 1000)} kB`);
