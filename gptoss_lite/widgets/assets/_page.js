// Starts the page widgets of a published page: no kernel, no network, also from file://.
// The two objects below are filled in: for a site by its Sphinx extension, for one file by `save`.
(() => {
  "use strict";
  const MODULES = /*MODULES*/ {};
  const STYLES = /*STYLES*/ {};

  // The part of anywidget's model that a drawing module may use.
  class Model {
    #state;
    #listeners = new Map();
    #changed = new Set();

    constructor(state) {
      this.#state = state;
    }
    get(name) {
      return this.#state[name];
    }
    set(name, value) {
      const changes = typeof name === "object" ? name : { [name]: value };
      for (const [key, next] of Object.entries(changes)) {
        if (this.#state[key] === next) continue;
        this.#state[key] = next;
        this.#changed.add(key);
        this.#emit(`change:${key}`, next);
      }
      if (this.#changed.size) this.#emit("change");
    }
    on(events, callback) {
      for (const event of events.split(/\s+/)) {
        if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
        this.#listeners.get(event).add(callback);
      }
    }
    off(events, callback) {
      if (events === undefined || events === null) return this.#listeners.clear();
      for (const event of events.split(/\s+/)) {
        if (callback === undefined || callback === null) this.#listeners.delete(event);
        else this.#listeners.get(event)?.delete(callback);
      }
    }
    save_changes() {
      this.#changed.clear(); // no kernel to tell
    }
    send() {}
    #emit(event, value) {
      for (const callback of [...(this.#listeners.get(event) ?? [])]) callback(this, value);
    }
  }

  // {"$bytes": "base64"} in the page is a bytes trait beside a kernel: a DataView.
  function revive(key, value) {
    if (value === null || typeof value !== "object" || typeof value.$bytes !== "string") return value;
    const text = atob(value.$bytes);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new DataView(bytes.buffer);
  }

  const loaded = new Map();
  function load(name) {
    if (!loaded.has(name)) {
      // What the views share comes first: their style, for inside the shadow root, and their code.
      const sheet = `const CSS = ${JSON.stringify(STYLES._kit ?? "")};\n`;
      const source = [sheet, MODULES._kit ?? "", "\n", MODULES[name]];
      const url = URL.createObjectURL(new Blob(source, { type: "text/javascript" }));
      loaded.set(name, import(url).finally(() => URL.revokeObjectURL(url)));
      if (STYLES[name]) {
        const style = document.createElement("style");
        style.textContent = STYLES[name];
        document.head.append(style);
      }
    }
    return loaded.get(name);
  }

  async function start(place) {
    const name = place.dataset.glWidget;
    if (!Object.hasOwn(MODULES, name)) return; // the sentence and the table stay
    const el = document.createElement("div");
    el.className = "gl-widget-live";
    try {
      const module = await load(name);
      const definition =
        typeof module.default === "function" ? await module.default() : (module.default ?? module);
      const model = new Model(JSON.parse(place.dataset.glState || "{}", revive));
      await definition.initialize?.({ model });
      const fallback = [...place.childNodes];
      place.append(el);
      await definition.render?.({ model, el });
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
