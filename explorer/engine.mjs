// Run the explorer's own code without a browser: node engine.mjs < wishes.json > answers.json
//
// wishes: [{"do": "body of an async function of scoresde and args", "args": ...}, ...], as of drive.mjs, for what needs
// no page: it takes a second where a browser takes many.
import { build } from "esbuild";

let text = "";
for await (const part of process.stdin.setEncoding("utf8")) text += part;
const bundled = await build({
  entryPoints: [new URL("src/engine.ts", import.meta.url).pathname],
  bundle: true,
  format: "esm",
  target: "es2022",
  write: false,
});
const code = `data:text/javascript;base64,${Buffer.from(bundled.outputFiles[0].text).toString("base64")}`;
const scoresde = await import(code);
const answers = [];
for (const step of JSON.parse(text)) {
  const call = new Function("scoresde", "args", `return (async () => { ${step.do} })();`);
  answers.push(await call(scoresde, step.args ?? null));
}
process.stdout.write(JSON.stringify({ answers }));
