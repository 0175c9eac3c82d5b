// What the views share: controls, drawing, themes, export. It stands in front of each module,
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

const button = (click, ...label) => h("button", { type: "button", click }, ...label);
const say = (node, text) => node.textContent === text || (node.textContent = text); // writing costs

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
const most = (values) => values.reduce((a, b) => Math.max(a, b));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Bytes in both conventions, with the limit of account.readable_bytes: a GB is 10^9, a GiB 2^30.
function bytes(n) {
  const [k, unit] = n < 10737418 ? [2, "M"] : [3, "G"];
  return `${(n / 1000 ** k).toFixed(2)} ${unit}B = ${(n / 1024 ** k).toFixed(2)} ${unit}iB`;
}
const gib = (n) => bytes(n).split(" = ")[1];

// Numbers of tokens from 1 to `end`: every one of the first few, then four a doubling.
const lengths = (end, first = 1) =>
  [...new Set([...range(first).map((i) => i + 1), ...range(4 * Math.log2(end) + 1).map((i) => Math.round(2 ** (i / 4))), end])].filter((n) => n <= end);

// A function that computes anew only when its key has changed.
function cached(key, make) {
  let last, value;
  return () => {
    const next = String(key());
    if (next !== last) [last, value] = [next, make()];
    return value;
  };
}

// A bytes trait is a DataView; beside a kernel it need not be aligned.
function numbers({ now }, name, Type) {
  const { buffer, byteOffset, byteLength } = now[name];
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

// Build the frame of a view: `now` reads its traits, `set` changes them. Controls and drawings
// are added to it, and `finish` starts it.
function start(model, el) {
  const now = new Proxy({}, { get: (_, name) => model.get(name) });
  const box = h("div", { class: "gl", role: "group", "aria-label": now.title });
  // Outside, letters are commands: "dd" deletes the notebook's cell.
  const keydown = (event) => event.ctrlKey || event.metaKey || event.stopPropagation();
  const host = h("div", { "data-lm-suppress-shortcuts": "true", keydown });
  host.attachShadow({ mode: "open" }).append(h("style", {}, CSS), box);
  el.append(host);

  const set = (changes, tell = true) => {
    model.set(changes);
    model.save_changes();
    if (tell && "token" in changes) document.dispatchEvent(new CustomEvent("gl-token", { detail: { text: now.text, ...changes } }));
  };
  const [controls, figures] = ["controls", "plots"].map((name) => h("div", { class: name }));
  const line = h("p", { class: "status", role: "status" });
  box.append(h("p", { class: "title" }, now.title), h("p", { class: "muted" }, now.summary), controls, line, figures);
  return { model, now, set, box, controls, line, figures, colors: {}, names: [], plots: [], measures: [], updates: [] };
}

// The foot of a view and its first drawing. `status` returns the line that says what is selected,
// `tables` a list of `table`. Return this from `render`.
function finish(ui, { status, tables, note }) {
  const name = ui.now.title.replace(/\W+/g, "-");
  ui.updates.push(() => {
    const next = h("p", {}, ...status());
    if (ui.line.textContent !== next.textContent) ui.line.replaceChildren(...next.childNodes);
  });
  ui.box.append(
    h("p", { class: "muted" }, note + (ui.now.first ? ` The first ${ui.now.first} tokens of the recording are not shown.` : "")),
    button(() => savePicture(ui, `${name}.png`), "Save PNG"),
    button(() => save(csv(tables()), `${name}.csv`), "Save CSV"),
    tableBelow(ui, tables));
  return watch(ui);
}

// Redraw once a frame when a trait, the theme or the width changes; return what ends it.
function watch(ui) {
  let waiting = 0, resized, dark;
  const ending = new AbortController(), on = (target, type, act) => target.addEventListener(type, act, { signal: ending.signal });
  const redraw = () => {
    waiting = 0;
    // Read sizes before anything is written: after that each reading would lay the page out anew.
    if (resized) for (const measure of ui.measures) measure();
    resized = false;
    if (dark !== (dark = !ui.paper && isDark())) {
      ui.box.classList.toggle("dark", dark);
      const style = getComputedStyle(ui.box);
      for (const name of THEME) ui.colors[name] = style.getPropertyValue(`--${name}`);
    }
    for (const update of ui.updates) update();
  };
  const later = () => (waiting ||= requestAnimationFrame(redraw));
  const themes = new MutationObserver(later), size = new ResizeObserver(() => later((resized = true)));
  for (const node of [document.documentElement, document.body])
    themes.observe(node, { attributeFilter: ["data-theme", "theme", "class", "data-jp-theme-light"] });
  size.observe(ui.box);
  on(matchMedia("(prefers-color-scheme: dark)"), "change", later);
  on(document, "gl-token", ui.follow);
  // Paper is light, and nobody scrolls it.
  for (const type of ["beforeprint", "afterprint"]) on(window, type, () => redraw((ui.paper = type === "beforeprint")));
  ui.model.on("change", later);
  return () => {
    themes.disconnect();
    size.disconnect();
    ending.abort();
    ui.model.off("change", later);
  };
}

// --- controls ---

function control(ui, name, label, input, show, ...more) {
  ui.names.push(name);
  ui.updates.push(() => show(ui.now[name]));
  input.setAttribute("aria-label", label);
  ui.controls.append(h("label", {}, h("span", {}, label), ...more, input));
}

// `changes` turns the slider's place into traits, `place` the trait into a place: not all are linear.
function slider(ui, name, label, max, text = String, { min = 0, step = 1, changes = (value) => ({ [name]: value }), place = Number } = {}) {
  const input = h("input", { type: "range", min, max, step, input: () => ui.set(changes(Number(input.value))) });
  const output = h("output", { "aria-hidden": "true" });
  control(ui, name, label, input, (value) => {
    input.value = place(value);
    say(output, text(value));
    input.setAttribute("aria-valuetext", `${label.toLowerCase()} ${output.textContent}`);
  }, output);
}

// A slider over a list of numbers, for scales that are not even.
const steps = (ui, name, label, list, text) =>
  slider(ui, name, label, list.length - 1, text, { changes: (i) => ({ [name]: list[i] }), place: (value) => list.findLastIndex((n) => n <= value) });

function checkbox(ui, name, label) {
  const input = h("input", { type: "checkbox", change: () => ui.set({ [name]: input.checked }) });
  control(ui, name, label, input, (value) => (input.checked = value));
}

function choice(ui, name, label, options, text = String, changes = (value) => ({ [name]: value })) {
  const items = Object.entries(options).map(([value, option]) => h("option", { value }, text(option, value)));
  const input = h("select", { change: () => ui.set(changes(input.value)) }, ...items);
  control(ui, name, label, input, (value) => (input.value = value));
}

// The slider over the tokens, of which each `stride`th is here, from `first` on. Traits and events
// count positions of the text, `ui.index` and `ui.pick` what is here. Views of one text move together.
function tokenSlider(ui) {
  const { tokens, text, first = 0, stride = 1 } = ui.now, n = tokens.length;
  const index = (token) => clamp(Math.round((token - first) / stride), 0, n - 1);
  ui.token = (i = ui.index()) => first + i * stride;
  ui.index = () => index(ui.now.token);
  ui.pick = (i, more) => ui.set({ token: ui.token(i), ...more });
  ui.follow = ({ detail }) => detail.text === text && ui.set({ token: ui.token(index(detail.token)) }, false);
  ui.grid = (rows) => ({ ...grid(rows, n), stride, from: first });
  slider(ui, "token", "Token", ui.token(n - 1), () => `${ui.token()}, ${visible(tokens[ui.index()])}`, { min: first, step: stride });
}

// Paragraphs beside the drawings. What is the same stays: a new link would not have the focus.
function panel(ui, content, attributes = {}) {
  const place = h("div", attributes);
  ui.figures.append(place);
  ui.updates.push(() => {
    const next = h("div", attributes, ...content());
    if (!place.isEqualNode(next)) place.replaceChildren(...next.childNodes);
  });
}

// The text itself: a click selects a token, the bar under it is as thick as its value, 0 to 1.
function strip(ui, value) {
  const { tokens } = ui.now, spans = tokens.map(quoted), inSight = new Set();
  const area = h("div", { class: "strip", tabindex: 0, role: "group", "aria-label": `Tokens: ${ui.now.title}`,
    click: ({ target }) => spans.includes(target) && ui.pick(spans.indexOf(target)) });
  spans.forEach((span, i) => area.append(span, ...(tokens[i].includes("\n") ? [h("br")] : [])));
  ui.box.append(area);
  // Long texts scroll, and setting styles is slow: only what is in sight gets its bar.
  const show = (span) => span.style.setProperty("--v", clamp(value(spans.indexOf(span)) || 0, 0, 1).toFixed(2));
  const observer = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    inSight[isIntersecting ? "add" : "delete"](target);
    show(target);
  }), { root: area });
  spans.forEach((span) => observer.observe(span));
  let last;
  ui.updates.push(() => {
    (ui.paper ? spans : inSight).forEach(show);
    if (last === ui.index()) return;
    spans[last]?.classList.remove("on");
    spans[(last = ui.index())].classList.add("on");
    area.scrollTop = spans[last].offsetTop - area.clientHeight / 2; // moves the strip, never the page
  });
}

// --- drawings ---

// A canvas with a caption. `area` is where its columns are; the rest is functions: caption, label
// (the finding), ramp -> [low, high], draw(pen), and pick(row, column, x) of what was clicked.
function plot(ui, { half, area, caption, label, ramp, draw, pick }) {
  let touch; // a finger that moves scrolls the page
  const picked = ({ type, buttons, pointerType, offsetX, offsetY }) => {
    if (type !== "click") touch = pointerType === "touch";
    if (touch ? type === "click" : buttons === 1) pick?.(...cellAt(area, offsetX, offsetY), offsetX);
  };
  const canvas = h("canvas", { role: "img", pointerdown: picked, pointermove: picked, click: picked }), g = canvas.getContext("2d");
  const title = h("span"), ends = [h("span"), h("span")], bar = h("i");
  bar.style.background = `linear-gradient(90deg, ${STOPS.map((stop) => `#${stop}`)})`;
  const figure = h("figure", { class: half ? "half" : "" },
    h("figcaption", {}, title, ...(ramp ? [h("span", { class: "ramp" }, ends[0], bar, ends[1])] : [])), canvas);
  ui.figures.append(figure);
  ui.plots.push({ figure, canvas: () => canvas, caption: () => caption() + (ramp ? `; dark ${ramp().join(", bright ")}` : "") });
  let width;
  ui.measures.push(() => (width = canvas.clientWidth));
  ui.updates.push(() => {
    const height = area.height + (area.foot ?? 20), scale = devicePixelRatio;
    say(title, caption());
    ramp?.().forEach((end, i) => say(ends[i], String(end)));
    canvas.setAttribute("aria-label", [caption(), label?.()].filter(Boolean).join(". "));
    if (!width) return;
    canvas.style.height = `${height}px`;
    for (const [side, size] of Object.entries({ width, height })) {
      const pixels = Math.floor(size * scale);
      if (canvas[side] !== pixels) canvas[side] = pixels; // a new size is a new canvas
    }
    area.width = width - area.x - 3 - (area.right ?? 0);
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, width, height);
    g.font = "11px system-ui, sans-serif";
    g.textBaseline = "middle";
    draw(new Pen(ui, g, area));
  });
}

// The place of a grid of rows and columns in its canvas.
const grid = (rows, columns, tallest = 20) => ({ x: 32, y: 3, height: rows * clamp(Math.floor(300 / rows), 3, tallest), rows, columns });

const cellAt = ({ x, y, width, height, rows = 1, columns = 1 }, px, py) =>
  [[(py - y) / height, rows], [(px - x) / width, columns]].map(([part, n]) => clamp(Math.floor(part * n), 0, n - 1));

// What drawings are made with. Colors are CSS or names of the theme. Values from 0 to area.end
// stand over the columns of the area.
class Pen {
  constructor({ colors }, g, area) {
    Object.assign(this, { colors, g, area });
  }
  color(name) {
    return this.colors[name] ?? name;
  }
  fill(color, ...box) {
    this.g.fillStyle = this.color(color);
    this.g.fillRect(...box);
  }
  words(text, x, y, color = "fg", align = "left", room) { // narrower letters where there is less room
    this.g.fillStyle = this.color(color);
    this.g.textAlign = align;
    this.g.fillText(text, x, y, room);
  }
  line(points, color, dash = [], thick = 1.8) {
    const { g } = this;
    g.beginPath();
    for (const point of points) g.lineTo(...point);
    g.setLineDash(dash);
    this.stroke(color, thick);
    g.setLineDash([]);
  }
  stroke(color, thick) {
    this.g.strokeStyle = this.color(color);
    this.g.lineWidth = thick;
    this.g.stroke();
  }
  circle(x, y, radius, color, edge) {
    this.g.beginPath();
    this.g.arc(x, y, radius, 0, 7);
    this.g.fillStyle = this.color(color);
    if (color) this.g.fill();
    if (edge) this.stroke(edge, 1.5);
  }
  // A frame around a cell, a row or a column, in sight on any color.
  frame(x, y, width, height) {
    this.g.beginPath();
    this.g.rect(x - 1, y - 1, width + 2, height + 2);
    this.stroke("#fff", 3.5);
    this.stroke("#000", 1.5);
  }

  // Values from 0 to 1, row after row, as colors; NaN stays empty. `row` and `column` get a frame.
  heat(values, name = String, row, column) {
    const { g, area } = this, { rows, columns, x, y, width, height } = area, tall = height / rows, wide = width / columns;
    if (area.image?.width !== columns) area.image = h("canvas", { width: columns, height: rows });
    if (area.values !== values) {
      const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
      for (let k = 0; k < pixels.length; k++)
        if (values[k] === values[k]) pixels[k] = PIXELS[Math.round(256 * Math.min(1, Math.max(0, values[k])))];
      area.image.getContext("2d").putImageData(image, 0, 0);
      area.values = values;
    }
    this.fill("soft", x, y, width, height);
    g.imageSmoothingEnabled = columns > g.canvas.width; // else columns would be lost
    g.drawImage(area.image, x, y, width, height);
    if (row !== undefined) this.frame(x, y + row * tall, width, tall);
    if (column !== undefined) this.frame(x + column * wide, y, wide, height);
    for (let r = 0; r < rows; r += Math.ceil(12 / tall) | 1) this.words(name(r), x - 5, y + (r + 0.5) * tall, "muted", "right");
    this.ticks();
  }

  // Numbers under the columns, of which the first is `from`.
  ticks({ x, y, width, height, columns, stride = 1, from = 0 } = this.area) {
    const wide = Math.max(1, (55 * columns * stride) / width), unit = 10 ** Math.floor(Math.log10(wide));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= wide);
    for (let i = Math.ceil(from / step) * step - from; i < columns * stride - (from ? 0 : step / 4); i += step)
      this.words(i + from, x + ((i / stride + 0.5) / columns) * width, y + height + 10, "muted", "center");
  }

  spot(i, value) {
    const { x, y, width, height, columns, end } = this.area;
    return [x + ((i + 0.5) / columns) * width, y + (1 - value / end) * height];
  }
  // A line at a height, with what it stands for at the left.
  level(y, text) {
    this.fill("line", this.area.x, y, this.area.width, 1);
    this.words(text, this.area.x - 5, y, "muted", "right");
  }
  levels() {
    for (const part of [0, 0.5, 1]) this.level(this.spot(0, part * this.area.end)[1], percent(part * this.area.end));
    this.ticks();
  }
  curve(value, color, dash) {
    this.line(range(this.area.columns).map((i) => this.spot(i, value(i))), color, dash);
  }
  // What lines of [name, color, dash] stand for, at the right from a height on.
  legend(lines, top) {
    const right = this.area.x + this.area.width;
    lines.forEach(([name, color, dash], k) => {
      const y = top + 15 * k;
      this.line([[right - 30, y], [right - 2, y]], color, dash);
      this.words(name, right - 34, y, "fg", "right", this.area.width - 38);
    });
  }
}

// The end of a color scale or an axis: a round number above all but a few of the values.
function scaleEnd(values, share = 1) {
  const largest = Float32Array.from(values).sort()[Math.floor(share * (values.length - 1))];
  return [0.05, 0.1, 0.2, 0.4, 0.6, 0.8].find((end) => largest <= end) ?? 1;
}

// --- tables and files ---

// A row is a list of numbers, strings and {token}.
const table = (caption, head, n, row) => ({ caption, head, body: range(n).map(row) });

function tableBelow(ui, tables) {
  const place = h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table: ${ui.now.title}` });
  const details = h("details", {}, h("summary", {}, "Show as table"), place);
  const line = (row, tag, attributes) =>
    h("tr", {}, ...row.map((v) => h(tag, attributes, v?.token === undefined ? v : quoted(v.token))));
  const fill = () => details.open && place.replaceChildren(...tables().map(({ caption, head, body }) =>
    h("table", {}, h("caption", {}, caption), h("thead", {}, line(head, "th", { scope: "col" })),
      h("tbody", {}, ...body.map((row) => line(row, "td"))))));
  details.addEventListener("toggle", fill);
  ui.updates.push(fill);
  return details;
}

// Tokens are quoted twice, so that a spreadsheet takes none for a formula.
const field = (v) => (v?.token !== undefined ? field(JSON.stringify(v.token)) : /[",]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);
const csv = (tables) =>
  new Blob(tables.flatMap(({ caption, head, body }) => [`"${caption}"\n`, ...[head, ...body].map((row) => `${row.map(field)}\n`), "\n"]));

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// All drawings of the view below each other, with their captions.
async function savePicture(ui, name) {
  const scale = devicePixelRatio, gap = 30 * scale, plots = ui.plots.filter(({ figure }) => !figure.hidden);
  const pictures = await Promise.all(plots.map(({ canvas }) => canvas()));
  const width = most(pictures.map((picture) => picture.width)) + gap, left = gap / 2;
  const sheet = h("canvas", { width }), g = sheet.getContext("2d"), pen = new Pen(ui, g);
  let y;
  const write = (text) => {
    const words = text.split(" "), start = (n) => words.slice(0, n).join(" ");
    for (y += gap * 0.2; words.length; ) {
      let n = words.length;
      while (n > 1 && g.measureText(start(n)).width > width - gap) n--;
      pen.words(start(n), left, (y += gap * 0.6));
      words.splice(0, n);
    }
  };
  const draw = () => {
    pen.fill("bg", 0, 0, width, sheet.height);
    g.font = `${13 * scale}px system-ui, sans-serif`;
    y = 0;
    write(ui.now.title);
    plots.forEach(({ caption }, i) => {
      write(caption());
      g.drawImage(pictures[i], left, y + gap * 0.3);
      y += pictures[i].height + gap * 0.2;
    });
    return y + gap;
  };
  sheet.height = draw(); // a new size is a new canvas
  draw();
  sheet.toBlob((blob) => save(blob, name));
}
