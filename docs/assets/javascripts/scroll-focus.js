// Lets the keyboard scroll what is wider than its column: such a table or figure takes the focus while it is.
(() => {
  function mark() {
    for (const region of document.querySelectorAll(".md-typeset__scrollwrap, .folo-figure, .folo-output-html, div.arithmatex")) {
      if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
      else region.removeAttribute("tabindex");
    }
  }

  new ResizeObserver(mark).observe(document.body);
})();
