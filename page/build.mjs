// Builds the page into the Python package, or into the folder that is named.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const here = import.meta.dirname;
const out = process.argv[2] ?? join(here, "../vox_serve/server/page/static");
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

await build({
  absWorkingDir: here,
  entryPoints: ["src/page.tsx", "src/page.css"],
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome123", "firefox120", "safari17.5"], // the first with light-dark() in CSS
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none", // LICENSES.txt has them
});
const modules = join(here, "node_modules");
for (const name of ["index.html", "docs.html", "docs.js", "icon.svg"]) {
  copyFileSync(join(here, "src", name), join(out, name));
}
for (const name of ["swagger-ui-bundle.js", "swagger-ui.css"]) {
  copyFileSync(join(modules, "swagger-ui-dist", name), join(out, name));
}

const { dependencies } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));
dependencies["@preact/signals-core"] = ""; // comes with @preact/signals
const licences = Object.keys(dependencies)
  .sort()
  .map((name) => {
    const { version, license } = JSON.parse(
      readFileSync(join(modules, name, "package.json"), "utf8"),
    );
    const texts = {
      "fft.js": ["README.md"],
      "swagger-ui-dist": ["LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"],
    };
    const text = (texts[name] ?? ["LICENSE"])
      .map((file) => readFileSync(join(modules, name, file), "utf8").trim())
      .map((text) => text.replace(/^[^]*#### LICENSE\n/, "")) // fft.js has it in its README
      .join("\n\n")
      .trim();
    return `${name} ${version} (${license})\n\n${text}\n`;
  });
writeFileSync(join(out, "LICENSES.txt"), licences.join(`\n${"-".repeat(78)}\n\n`));
