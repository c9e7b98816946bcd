import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { defineConfig } from "vite";

/** What the page is built from: a test computes the same hash and compares it with the page's. */
function sourceHash() {
  const sources = readdirSync("src", { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`)
    .concat("index.html", "package.json", "package-lock.json", "vite.config.js");
  const hash = createHash("sha256");
  for (const path of sources.sort()) hash.update(`${path}\0`).update(readFileSync(path));
  return hash.digest("hex");
}

/** One file without any other: script and style move into the page, the script to its end. */
const singleFile = {
  name: "single-file",
  enforce: "post",
  generateBundle(_, bundle) {
    const take = (ending) => {
      const [name] = Object.keys(bundle).filter((file) => file.endsWith(ending));
      const { code, source } = bundle[name];
      delete bundle[name];
      return code ?? source;
    };
    const [page, script, style] = [take(".html"), take(".js"), take(".css")];
    const head = `<meta name="posenc-source" content="${sourceHash()}">\n<style>${style.trim()}</style>\n</head>`;
    const end = `<script type="module">${script.trim().replaceAll("</script", "<\\/script")}</script>\n</body>`;
    const source = page
      .replace(/\s*<(script type="module"|link rel="stylesheet")[^>]*>(<\/script>)?/g, "")
      .replace("</head>", () => head)
      .replace("</body>", () => end);
    writeFileSync("../page.html", source);
  },
};

export default defineConfig({
  plugins: [singleFile],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    write: false, // the plugin writes the one file
    modulePreload: false,
    cssTarget: ["chrome123", "firefox120", "safari17.5"], // the first with light-dark()
  },
});
