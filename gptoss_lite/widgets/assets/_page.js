// Starts the page widgets of a published page: no kernel, no network, also from file://.
// The two objects below are filled in: for a site by its Sphinx extension, for one file by `save`.
(() => {
  "use strict";
  const MODULES = /*MODULES*/ {};
  const STYLES = /*STYLES*/ {};

  // The part of anywidget's model that a drawing module may use.
  class Model extends EventTarget {
    #state;
    on = this.addEventListener;
    off = this.removeEventListener;

    constructor(state) {
      super();
      this.#state = state;
    }
    get(name) {
      return this.#state[name];
    }
    set(changes) {
      Object.assign(this.#state, changes);
      this.dispatchEvent(new Event("change"));
    }
    save_changes() {} // no kernel to tell
  }

  // {"$bytes": "base64"} in the page is a bytes trait beside a kernel: a DataView.
  function revive(key, value) {
    if (value === null || typeof value !== "object" || typeof value.$bytes !== "string") return value;
    return new DataView(Uint8Array.from(atob(value.$bytes), (c) => c.charCodeAt(0)).buffer);
  }

  const loaded = new Map();
  function load(name) {
    if (!loaded.has(name)) {
      // What the views share comes first: their style, for inside the shadow root, and their code.
      const source = [`const CSS = ${JSON.stringify(STYLES._kit)};\n`, MODULES._kit, "\n", MODULES[name]];
      const url = URL.createObjectURL(new Blob(source, { type: "text/javascript" }));
      loaded.set(name, import(url).finally(() => URL.revokeObjectURL(url)));
    }
    return loaded.get(name);
  }

  async function start(place) {
    const name = place.dataset.glWidget;
    if (!Object.hasOwn(MODULES, name)) return; // the sentence and the table stay
    const el = document.createElement("div");
    el.className = "gl-widget-live";
    try {
      const { default: view } = await load(name);
      const model = new Model(JSON.parse(place.dataset.glState, revive));
      const fallback = [...place.childNodes];
      place.append(el);
      await view.render({ model, el });
      for (const node of fallback) node.remove();
      place.dataset.glReady = "true";
    } catch (error) {
      el.remove();
      place.dataset.glReady = "false";
      console.error(`The figure "${name}" could not start:`, error);
    }
  }

  function startAll() {
    for (const place of document.querySelectorAll("div.gl-widget[data-gl-widget]")) {
      if (place.dataset.glReady === undefined) start(place);
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
