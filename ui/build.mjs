// Builds the bundle that ships with the Python package. With --check, compares it with the committed one.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = fileURLToPath(new URL(".", import.meta.url));
const committed = join(here, "../src/cutaway/view/static");
const bench = join(here, "../src/cutaway/workbench/static");
const check = process.argv.includes("--check");
const out = check ? mkdtempSync(join(tmpdir(), "cutaway-ui-")) : committed;
const home = (name) => join(name.startsWith("bench.") ? bench : committed, name); // where a file is committed
const LIMIT = 60_000; // bytes, gzipped

mkdirSync(bench, { recursive: true });

const common = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  target: "es2022",
  charset: "ascii", // the bundle is inlined into pages
  legalComments: "none",
  jsx: "automatic",
  jsxImportSource: "preact",
};
await build({ ...common, entryPoints: ["src/static.ts"], outfile: join(out, "figure.js"), format: "iife" });
await build({ ...common, entryPoints: ["src/widget.ts"], outfile: join(out, "widget.js"), format: "esm" });
await build({ ...common, entryPoints: ["src/figure.css"], outfile: join(out, "figure.css") });
const place = check ? out : bench;
await build({ ...common, entryPoints: ["src/bench/main.tsx"], outfile: join(place, "bench.js"), format: "iife" });
await build({ ...common, entryPoints: ["src/bench/bench.css"], outfile: join(place, "bench.css") });
copyFileSync(join(here, "src/bench/bench.html"), join(place, "bench.html"));

// The bundle holds copies of these; their licence asks to be named.
const parts = ["preact", "@preact/signals", "@preact/signals-core"];
const licences = parts.map((name) => `${name}\n\n${readFileSync(join(here, "node_modules", name, "LICENSE"), "utf8").trim()}\n`);
writeFileSync(join(out, "LICENSES.txt"), licences.join("\n\n"));

const names = ["figure.js", "widget.js", "figure.css", "LICENSES.txt"];
const size = ["figure.js", "figure.css"].reduce((sum, name) => sum + gzipSync(readFileSync(join(out, name))).length, 0);
if (size > LIMIT) throw new Error(`the static bundle is ${size} bytes gzipped; at most ${LIMIT} are allowed`);
for (const name of names)
  if (/<\/(script|style)/i.test(readFileSync(join(out, name), "utf8")))
    throw new Error(`${name} holds a closing tag, which would end the element it is inlined into`);
if (check) {
  const pages = ["bench.js", "bench.css", "bench.html"];
  const stale = [...names, ...pages].filter((name) => !readFileSync(join(out, name)).equals(readFileSync(home(name))));
  rmSync(out, { recursive: true });
  if (stale.length) {
    console.error(`${stale.join(", ")} in src/cutaway/view/static or workbench/static is not what ui/ builds; run: make ui`);
    process.exit(1);
  }
}
console.log(`figure.js and figure.css: ${size} bytes gzipped`);
