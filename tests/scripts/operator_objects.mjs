// Holds objects of the Prometheus Operator against its types, which know the fields, and its validators, which know
// the formats of values.
//
// node operator_objects.mjs MODELS FOLDER < LIST: MODELS is where npm installed them, FOLDER is empty and may be
// written to. Exits 1 with the reasons; any other exit code means that the check itself did not work.
import { spawnSync } from "node:child_process";
import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [models, folder] = process.argv.slice(2);
const objects = JSON.parse(readFileSync(0, "utf8"));
const name = "@kubernetes-models/prometheus-operator";
const wrong = [];

for (const object of objects) {
  const file = join(models, "node_modules", name, object.apiVersion, `${object.kind}.js`);
  const module = await import(pathToFileURL(file));
  try {
    new module[object.kind](object).validate();
  } catch (error) {
    wrong.push(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}

symlinkSync(join(models, "node_modules"), join(folder, "node_modules"));
const lines = objects.flatMap((object, i) => [
  `import type { I${object.kind} as T${i} } from "${name}/${object.apiVersion}/${object.kind}";`,
  `// ${object.kind} ${object.metadata.name}`,
  `export const object${i}: T${i} = ${JSON.stringify(object, null, 1)};`,
]);
writeFileSync(join(folder, "objects.ts"), lines.join("\n"));
// The smallest library: reading it is most of the work.
const options = { noEmit: true, strict: true, skipLibCheck: true, module: "nodenext", lib: ["es5"], types: [] };
writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions: options, files: ["objects.ts"] }));
const compiler = join(models, "node_modules/typescript/bin/tsc");
const checked = spawnSync(process.execPath, [compiler, "-p", "."], { cwd: folder, encoding: "utf8" });
if (checked.status === null || ![0, 1, 2].includes(checked.status)) {
  console.error(checked.error ?? checked.stderr);
  process.exit(3);
}
if (checked.status !== 0) wrong.push(checked.stdout);
if (wrong.length > 0) {
  console.log(wrong.join("\n"));
  process.exit(1);
}
