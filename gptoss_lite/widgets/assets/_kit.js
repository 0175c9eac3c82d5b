// What the views share: controls, canvases, themes, export. It stands in front of each module,
// after the style sheet as the constant CSS.

// Text never becomes markup: strings go in as text nodes.
const h = (tag, ...more) => filled(document.createElement(tag), ...more);
const s = (tag, ...more) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), ...more);

function filled(node, attributes = {}, ...children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// A token on one line: newlines, outer blanks, control and direction characters become visible.
const visible = (token) =>
  token
    .replace(/\n/g, "⏎")
    .replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length))
    .replace(/[\0-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) =>
      `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
const quoted = (token) => h("bdi", {}, visible(token));

const percent = (x) => `${Math.round(100 * x)}%`;
const range = (n) => Array.from({ length: n }, (_, i) => i);
const count = (n) => n.toLocaleString("en");

// Bytes in both conventions, with the limit of account.readable_bytes: a GB is 10^9, a GiB 2^30.
function bytes(n) {
  const [k, unit] = n < 10737418 ? [2, "M"] : [3, "G"];
  return `${(n / 1000 ** k).toFixed(2)} ${unit}B = ${(n / 1024 ** k).toFixed(2)} ${unit}iB`;
}
const gib = (n) => bytes(n).split(" = ")[1];

// Numbers of tokens from 1 to `end`: every one of the first few, then four a doubling.
const lengths = (end, first = 1) =>
  [...new Set([...range(first).map((i) => i + 1), ...range(4 * Math.log2(end) + 1).map((i) => Math.round(2 ** (i / 4))), end])].filter((n) => n <= end);

// A bytes trait is a DataView; beside a kernel it need not be aligned.
function numbers(model, name, Type) {
  const { buffer, byteOffset, byteLength } = model.get(name);
  return new Type(buffer.slice(byteOffset, byteOffset + byteLength));
}

// The color map cividis: nine of its colors, and 257 pixels between them, as little-endian RGBA.
const STOPS = "00224e 1a386f 434e6c 61656f 7d7c78 9b9476 bcae6c dec958 fee838".split(" ");
const PIXELS = Uint32Array.from(range(257), (at) => {
  const ends = [STOPS[at >> 5], STOPS[Math.min(8, (at >> 5) + 1)]];
  return [4, 2, 0].reduce((pixel, k) => {
    const [a, b] = ends.map((stop) => parseInt(stop.slice(k, k + 2), 16));
    return pixel * 256 + Math.round(a + ((b - a) * (at & 31)) / 32);
  }, 255);
});

const THEME = ["fg", "muted", "bg", "soft", "line", "accent"]; // of _kit.css

function isDark() {
  const page = document.documentElement, { body } = document;
  const theme = page.dataset.theme || page.getAttribute("theme"); // the book; Colab
  if (theme) return theme === "dark";
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  const code = body.className.match(/vscode-(light|dark|high-contrast(-light)?)/);
  return code ? !code[1].endsWith("light") : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Build the frame of a view. `traits` redraw it; `status` returns the line that says what is
// selected, `tables` a list of {caption, rows}, the first row being the head.
function start(model, el, { traits, status, tables }) {
  const ui = { model, tables, plots: [], updates: [], measures: [], title: model.get("title") };
  const host = h("div", { "data-lm-suppress-shortcuts": "true" });
  ui.box = h("div", { class: "gl", role: "group", "aria-label": ui.title });
  host.attachShadow({ mode: "open" }).append(h("style", {}, CSS), ui.box);
  // Outside, letters are commands: "dd" deletes the notebook's cell.
  host.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
  el.append(host);

  const text = model.get("tokens")?.join("\0"); // not every view has one
  ui.set = (changes) => {
    model.set(changes);
    model.save_changes();
    if ("token" in changes) document.dispatchEvent(new CustomEvent("gl-token", { detail: { text, ...changes } }));
  };
  const redraw = () => {
    // Read sizes before anything is written: after that each reading would lay the page out anew.
    for (const measure of ui.measures) measure();
    ui.box.classList.toggle("dark", isDark());
    const style = getComputedStyle(ui.box);
    for (const name of THEME) ui[name] = style.getPropertyValue(`--${name}`);
    for (const update of ui.updates) update();
  };
  ui.watch = watch(ui.box, model, traits, redraw, (event) => {
    // Views of one text move together.
    const { token, ...other } = event.detail;
    if (text && other.text === text && model.get("token") !== token) model.set({ token }), model.save_changes();
  });

  const line = h("p", { class: "status", role: "status" });
  ui.updates.push(() => {
    const next = h("p", {}, ...status());
    if (line.textContent !== next.textContent) line.replaceChildren(...next.childNodes);
  });
  ui.controls = h("div", { class: "controls" });
  ui.figures = h("div", { class: "plots" });
  ui.box.append(
    h("p", { class: "title" }, ui.title), h("p", { class: "muted" }, model.get("summary")),
    ui.controls, line, ui.figures);
  return ui;
}

// Redraw once a frame when a trait, the theme or the width changes; return what ends it.
function watch(box, model, traits, redraw, follow) {
  let waiting = 0;
  const later = () => (waiting ||= requestAnimationFrame(() => ((waiting = 0), redraw())));
  const themes = new MutationObserver(later), size = new ResizeObserver(later);
  const scheme = matchMedia("(prefers-color-scheme: dark)"), events = traits.map((name) => `change:${name}`).join(" ");
  for (const node of [document.documentElement, document.body])
    themes.observe(node, { attributeFilter: ["data-theme", "theme", "class", "data-jp-theme-light"] });
  size.observe(box);
  scheme.addEventListener("change", later);
  document.addEventListener("gl-token", follow);
  model.on(events, later);
  return () => {
    themes.disconnect();
    size.disconnect();
    scheme.removeEventListener("change", later);
    document.removeEventListener("gl-token", follow);
    model.off(events, later);
  };
}

// The foot of a view, and its first drawing. Return this from `render`.
function finish(ui, note) {
  const name = ui.title.replace(/\W+/g, "-");
  ui.box.append(
    h("p", { class: "muted" }, note),
    h("button", { type: "button", click: () => savePicture(ui, `${name}.png`) }, "Save PNG"),
    h("button", { type: "button", click: () => save(csv(ui.tables()), `${name}.csv`) }, "Save CSV"),
    tableBelow(ui));
  return ui.watch;
}

// --- controls ---

function control(ui, label, input, show, ...more) {
  ui.updates.push(show);
  input.setAttribute("aria-label", label);
  ui.controls.append(h("label", {}, h("span", {}, label), ...more, input));
}

// `changes` turns the slider's place into traits, `place` the trait into a place: not all are linear.
function slider(ui, name, label, min, max, step, text, changes = (value) => ({ [name]: value }), place = Number) {
  const input = h("input", { type: "range", min, max, step, input: () => ui.set(changes(Number(input.value))) });
  const output = h("output", { "aria-hidden": "true" });
  const show = () => {
    const value = ui.model.get(name);
    input.value = place(value);
    output.textContent = text(value);
    input.setAttribute("aria-valuetext", `${label.toLowerCase()} ${text(value)}`);
  };
  control(ui, label, input, show, output);
}

// A slider over a list of numbers, for scales that are not even.
const steps = (ui, name, label, list, text) =>
  slider(ui, name, label, 0, list.length - 1, 1, text, (i) => ({ [name]: list[i] }), (value) => list.findLastIndex((n) => n <= value));

function checkbox(ui, name, label) {
  const input = h("input", { type: "checkbox", change: () => ui.set({ [name]: input.checked }) });
  control(ui, label, input, () => (input.checked = ui.model.get(name)));
}

function choice(ui, name, label, options) {
  const items = Object.entries(options).map(([value, text]) => h("option", { value }, text));
  const input = h("select", { change: () => ui.set({ [name]: input.value }) }, ...items);
  control(ui, label, input, () => (input.value = ui.model.get(name)));
}

// The text itself: a click selects a token, the bar under it is as thick as its value, 0 to 1.
function strip(ui, tokens, values, selected, pick) {
  const spans = tokens.map(quoted);
  const area = h("div", { class: "strip", tabindex: 0, role: "group", "aria-label": `Tokens: ${ui.title}` });
  area.addEventListener("click", ({ target }) => spans.includes(target) && pick(spans.indexOf(target)));
  spans.forEach((span, i) => area.append(span, ...(tokens[i].includes("\n") ? [h("br")] : [])));
  ui.box.append(area);
  let last;
  ui.updates.push(() => {
    values().forEach((v, i) => spans[i].style.setProperty("--v", Math.min(1, v).toFixed(2)));
    if (last === selected()) return;
    spans[last]?.classList.remove("on");
    spans[(last = selected())].classList.add("on");
    area.scrollTop = spans[last].offsetTop - area.clientHeight / 2; // moves the strip, never the page
  });
}

// --- drawings ---

// A canvas with a caption. spec: caption(), label(), ramp() -> [low, high], area, draw(g), pick(x, y).
function plot(ui, spec) {
  const canvas = h("canvas", { role: "img" }), caption = h("figcaption"), { area } = spec;
  const picked = (event) => event.buttons === 1 && spec.pick?.(event.offsetX, event.offsetY);
  canvas.addEventListener("pointerdown", picked);
  canvas.addEventListener("pointermove", picked);
  ui.figures.append(h("figure", { class: spec.half ? "half" : "" }, caption, canvas));
  ui.plots.push({ spec, canvas: () => canvas });
  let width;
  ui.measures.push(() => (width = canvas.clientWidth));
  ui.updates.push(() => {
    const height = area.height + 20, scale = devicePixelRatio || 1;
    caption.replaceChildren(spec.caption(), ...(spec.ramp ? [ramp(...spec.ramp())] : []));
    canvas.setAttribute("aria-label", spec.label());
    canvas.style.height = `${height}px`;
    canvas.width = width * scale;
    canvas.height = height * scale;
    area.width = width - area.x - 3 - (area.right ?? 0);
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    g.font = "11px system-ui, sans-serif";
    g.textBaseline = "middle";
    if (width) spec.draw(g);
  });
}

const fill = (g, color, ...box) => ((g.fillStyle = color), g.fillRect(...box));
const words = (g, text, x, y, color, align = "left") => ((g.fillStyle = color), (g.textAlign = align), g.fillText(text, x, y));

function ramp(low, high) {
  const bar = h("i");
  bar.style.background = `linear-gradient(90deg, ${STOPS.map((stop) => `#${stop}`)})`;
  return h("span", { class: "ramp" }, low, bar, high);
}

// The place of a grid of rows and columns in its canvas; `stride` positions a column.
function grid(rows, columns, stride = 1, tallest = 20) {
  const size = Math.max(3, Math.min(tallest, Math.floor(300 / rows)));
  return { x: 32, y: 3, height: rows * size, rows, columns, size, stride };
}

function cellAt({ x, y, width, size, rows, columns }, px, py) {
  const inside = (value, n) => Math.min(n - 1, Math.max(0, Math.floor(value)));
  return [inside((py - y) / size, rows), inside(((px - x) / width) * columns, columns)];
}

// Draw values from 0 to 1 as colors; undefined stays empty. `row` and `column` get a frame.
function heat(ui, g, area, value, name, row, column) {
  const { rows, columns, size, x, y, width, height } = area, image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let r = 0, k = 0; r < rows; r++)
    for (let c = 0; c < columns; c++, k++) {
      const v = value(r, c);
      if (v !== undefined) pixels[k] = PIXELS[Math.round(256 * Math.min(1, Math.max(0, v)))];
    }
  const small = (area.small ??= h("canvas", { width: columns, height: rows })); // kept: costly to make
  small.getContext("2d").putImageData(image, 0, 0);
  g.fillStyle = ui.soft;
  g.fillRect(x, y, width, height);
  g.imageSmoothingEnabled = columns > g.canvas.width; // else columns would be lost
  g.drawImage(small, x, y, width, height);
  const cell = width / columns;
  if (row !== undefined) frame(g, x, y + row * size, width, size);
  if (column !== undefined) frame(g, x + column * cell, y, cell, height);
  g.fillStyle = ui.muted;
  g.textAlign = "right";
  for (let r = 0; r < rows; r += Math.ceil(12 / size)) g.fillText(name(r), x - 5, y + (r + 0.5) * size);
  ticks(g, area);
}

// A frame around a cell, a row or a column, in sight on any color.
function frame(g, x, y, width, height) {
  for (const [color, thick] of [["#fff", 3.5], ["#000", 1.5]]) {
    g.strokeStyle = color;
    g.lineWidth = thick;
    g.strokeRect(x - 1, y - 1, width + 2, height + 2);
  }
}

// The end of a color scale or an axis: a round number above all but a few of the values.
function scaleEnd(values, share = 1) {
  const most = Float32Array.from(values).sort()[Math.floor(share * (values.length - 1))];
  return [0.05, 0.1, 0.2, 0.4, 0.6, 0.8].find((end) => most <= end) ?? 1;
}

// Numbers under the columns, of which the first is `from`.
function ticks(g, { x, y, width, height, columns, stride, from = 0 }) {
  const wide = Math.max(1, (55 * columns * stride) / width), unit = 10 ** Math.floor(Math.log10(wide));
  const step = unit * [1, 2, 5, 10].find((m) => m * unit >= wide);
  g.textAlign = "center";
  for (let i = Math.ceil(from / step) * step - from; i < columns * stride - (from ? 0 : step / 4); i += step)
    g.fillText(i + from, x + ((i / stride + 0.5) / columns) * width, y + height + 10);
}

// --- lines over the columns of an area whose height is `end` ---

const spot = ({ x, y, width, height, columns, end }, i, value) => [x + ((i + 0.5) / columns) * width, y + (1 - value / end) * height];

function levels(ui, g, area) {
  for (const part of [0, 0.5, 1]) {
    const y = area.y + (1 - part) * area.height;
    fill(g, ui.line, area.x, y, area.width, 1);
    words(g, percent(part * area.end), area.x - 5, y, ui.muted, "right");
  }
  ticks(g, area);
}

function curve(g, area, value, color, dash) {
  g.beginPath();
  for (let i = 0; i < area.columns; i++) g.lineTo(...spot(area, i, value(i)));
  g.strokeStyle = color;
  g.lineWidth = 1.8;
  g.setLineDash(dash);
  g.stroke();
  g.setLineDash([]);
}

function dot(ui, g, area, i, value, color = ui.accent) {
  g.beginPath();
  g.arc(...spot(area, i, value), 4.5, 0, 7);
  g.fillStyle = color;
  g.fill();
  g.strokeStyle = ui.fg;
  g.lineWidth = 1.5;
  g.stroke();
}

// --- tables and files ---

function tableBelow(ui) {
  const place = h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table: ${ui.title}` });
  const details = h("details", {}, h("summary", {}, "Show as table"), place);
  const line = (row, tag, attributes) =>
    h("tr", {}, ...row.map((v) => h(tag, attributes, v?.token === undefined ? v : quoted(v.token))));
  const fill = () => {
    if (!details.open) return;
    place.replaceChildren(...ui.tables().map(({ caption, rows: [head, ...body] }) =>
      h("table", {}, h("caption", {}, caption), h("thead", {}, line(head, "th", { scope: "col" })),
        h("tbody", {}, ...body.map((row) => line(row, "td"))))));
  };
  details.addEventListener("toggle", fill);
  ui.updates.push(fill);
  return details;
}

// Tokens are quoted twice, so that a spreadsheet takes none for a formula.
const field = (v) => (v?.token !== undefined ? field(JSON.stringify(v.token)) : /[",]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);
const csv = (tables) =>
  new Blob(tables.flatMap(({ caption, rows }) => [`"${caption}"\n`, ...rows.map((row) => `${row.map(field)}\n`), "\n"]));

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// All drawings of the view below each other, with their captions.
async function savePicture(ui, name) {
  const scale = devicePixelRatio || 1, gap = 30 * scale;
  const pictures = await Promise.all(ui.plots.map(({ canvas }) => canvas()));
  const width = Math.max(...pictures.map((picture) => picture.width)) + gap;
  const height = pictures.reduce((sum, picture) => sum + picture.height + gap, 2 * gap);
  const sheet = h("canvas", { width, height }), g = sheet.getContext("2d");
  g.fillStyle = ui.bg;
  g.fillRect(0, 0, width, height);
  g.fillStyle = ui.fg;
  g.font = `${13 * scale}px system-ui, sans-serif`;
  let y = gap * 0.7;
  g.fillText(ui.title, gap / 2, y);
  ui.plots.forEach(({ spec }, i) => {
    y += gap * 0.8;
    g.fillText(spec.caption() + (spec.ramp ? `; dark ${spec.ramp().join(", bright ")}` : ""), gap / 2, y);
    g.drawImage(pictures[i], gap / 2, y + gap * 0.3);
    y += pictures[i].height + gap * 0.2;
  });
  sheet.toBlob((blob) => save(blob, name));
}

// An SVG drawing as an image: its colors are properties of the page, so they go along.
async function picture(ui, drawing, width, height) {
  const copy = drawing.cloneNode(true), scale = devicePixelRatio || 1, image = new Image(width * scale, height * scale);
  for (const [name, size] of Object.entries({ width, height })) copy.setAttribute(name, size * scale);
  copy.setAttribute("style", THEME.map((name) => `--${name}:${ui[name]}`).join(";"));
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  await image.decode();
  return image;
}
