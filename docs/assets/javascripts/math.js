// Typesets the formulas of a page with the vendored KaTeX, which is loaded only where there are any.
(() => {
  const here = document.currentScript.src;
  const vendor = new URL("../vendor/katex/", here);

  function typeset() {
    for (const element of document.querySelectorAll(".arithmatex")) {
      const source = element.textContent.trim();
      const displayMode = source.startsWith("\\[");
      katex.render(source.slice(2, -2), element, { displayMode, throwOnError: false });
    }
  }

  function load() {
    if (!document.querySelector(".arithmatex")) return;
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("katex.min.css", vendor);
    const script = document.createElement("script");
    script.src = new URL("katex.min.js", vendor);
    script.onload = typeset;
    document.head.append(style, script);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", load);
  else load();
})();
