// What scrolls sideways by itself is reached by Tab. The theme does this for code, not for these.
(() => {
  "use strict";
  const PLACES = "mjx-container[display=true], .bd-article table.table, .cell_output, .gl-widget";

  function update() {
    for (const node of document.querySelectorAll(PLACES)) {
      const scrolls = /auto|scroll/.test(getComputedStyle(node).overflowX);
      if (scrolls && node.scrollWidth > node.clientWidth) node.tabIndex = 0;
      else node.removeAttribute("tabindex");
    }
  }

  // The article changes its size with the window, the side bars, folds and set formulas.
  const article = document.querySelector(".bd-article");
  if (article) new ResizeObserver(() => requestAnimationFrame(update)).observe(article);
})();
