"use strict";
// What the page can do beyond showing. Without this script everything is on it too: pictures at all K side by side, charts
// whose points have titles, all numbers in tables. Texts of the page enter only as text, never as HTML.

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function copyOf(image, alt = "") {
  return make("img", { src: image.src, alt });
}

// The pictures of a row or pair, from fewer to more tokens, and the original where there is one.
function picturesOf(element) {
  const images = all("img", element);
  return {
    caption: element.dataset.caption,
    original: images.find((image) => image.dataset.label === "original"),
    stages: images.filter((image) => image.dataset.label !== "original"),
  };
}

// Reconstructions: one slider over K for all of them.
function gallery() {
  const slider = byId("keep");
  const rows = all("#reconstruction-table tbody tr");
  const stages = picturesOf(rows[0]).stages;
  const shown = byId("keep-shown");
  const stacks = rows.map((row) => {
    const { caption, original, stages } = picturesOf(row);
    const under = copyOf(original);
    under.className = "under";
    const stack = make("span", { className: "stack" }, under, ...stages.map((image) => copyOf(image)));
    const button = make("button", { type: "button", className: "open" }, copyOf(original), stack);
    button.addEventListener("click", () => zoom(picturesOf(row), Number(slider.value)));
    byId("gallery").append(make("figure", {}, button, make("figcaption", { textContent: caption })));
    return { caption, button, pictures: all("img:not(.under)", stack) };
  });
  function show() {
    const at = Number(slider.value);
    const { label, note } = stages[at].dataset;
    shown.textContent = note ? `${label}, ${note}` : label;
    slider.setAttribute("aria-valuetext", shown.textContent);
    for (const { caption, button, pictures } of stacks) {
      button.setAttribute("aria-label", `${caption}: original and ${label}, enlarge`);
      pictures.forEach((picture, place) => (picture.hidden = place !== at));
    }
  }
  slider.addEventListener("input", show);
  show();
  for (const choice of all("input[name=view]")) {
    choice.addEventListener("change", () => {
      byId("gallery").hidden = choice.value === "table";
      byId("gallery").classList.toggle("difference", choice.value === "difference");
      byId("reconstruction-table").hidden = choice.value !== "table";
    });
  }
  byId("reconstruction-table").hidden = true;
}

// A picture large, beside its original and their difference.
let opened = null;

function zoom(pictures, at) {
  opened = pictures;
  const { caption, original, stages } = pictures;
  byId("zoom-title").textContent = caption;
  for (const id of ["zoom-original", "zoom-difference"]) byId(id).hidden = !original;
  if (original) {
    byId("zoom-original").querySelector("img").src = original.src;
    byId("zoom-difference").querySelector("img").src = original.src;
  }
  const keep = byId("zoom-keep");
  keep.max = stages.length - 1;
  keep.value = at;
  keep.parentElement.hidden = stages.length < 2;
  byId("zoom-factor").value = 1;
  showStage();
  magnify();
  byId("zoom").showModal();
}

function showStage() {
  const image = opened.stages[Number(byId("zoom-keep").value)];
  byId("zoom-keep").setAttribute("aria-valuetext", image.dataset.label);
  byId("zoom-label").textContent = image.dataset.label;
  byId("zoom-stage").querySelector("img").src = image.src;
  byId("zoom-stage").querySelector("img").alt = image.alt;
  all("#zoom-difference img")[1].src = image.src;
}

function magnify() {
  const factor = Number(byId("zoom-factor").value);
  byId("zoom-factor-shown").textContent = `${factor} ×`;
  for (const canvas of all("#zoom .canvas")) canvas.style.width = `${100 * factor}%`;
}

function zooming() {
  byId("zoom-keep").addEventListener("input", showStage);
  byId("zoom-factor").addEventListener("input", magnify);
  byId("zoom-close").addEventListener("click", () => byId("zoom").close());
  // All panes show the same part.
  const panes = all("#zoom .pane");
  for (const pane of panes) {
    pane.addEventListener("scroll", () => {
      for (const other of panes) {
        if (other.scrollLeft !== pane.scrollLeft) other.scrollLeft = pane.scrollLeft;
        if (other.scrollTop !== pane.scrollTop) other.scrollTop = pane.scrollTop;
      }
    });
  }
  for (const image of all("[data-caption] img")) {
    const holder = image.closest("[data-caption]");
    const button = make("button", { type: "button", className: "open" });
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      const pictures = picturesOf(holder);
      zoom(pictures, Math.max(pictures.stages.indexOf(image), 0));
    });
  }
}

// Rows of a table whose text has what was typed.
function filters() {
  for (const input of all("input[data-filters]")) {
    const rows = all("tbody tr", byId(input.dataset.filters));
    const apply = () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
      byId(`${input.id}-count`).textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    };
    input.addEventListener("input", apply);
    apply();
  }
  const by = byId("extremes-by");
  if (!by) return;
  const parts = all(".extremes");
  const choose = () => parts.forEach((part, place) => (part.hidden = place !== by.selectedIndex));
  by.addEventListener("change", choose);
  choose();
}

// Values beside a plot, by pointer or by a range input that stands below it while it has the focus.
function readable(plot, title, count, nearest, told, mark) {
  const tip = make("div", { className: "tip", hidden: true });
  const slider = make("input", { type: "range", className: "reader", min: 0, max: count - 1, value: 0 });
  slider.setAttribute("aria-label", `Values of ${title}`);
  plot.append(tip, slider);
  function show(place) {
    const { head, rows, x } = told(place);
    slider.value = place;
    slider.setAttribute("aria-valuetext", [head, ...rows.map(({ label, value }) => (label ? `${label} ${value}` : value))].join(", "));
    const lines = rows.map(({ label, value, colour }) => {
      const named = label ? [make("i", { className: `swatch ${colour}` }), `${label} `] : [];
      return make("div", {}, ...named, make("b", { textContent: value }));
    });
    tip.replaceChildren(make("div", { className: "head", textContent: head }), ...lines);
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(x * plot.clientWidth + 12, plot.clientWidth - tip.offsetWidth))}px`;
    if (x > 0.5) tip.style.left = `${Math.max(0, x * plot.clientWidth - tip.offsetWidth - 12)}px`;
    mark(place);
  }
  function hide() {
    tip.hidden = true;
    mark(null);
  }
  const follow = (event) => event.target !== slider && show(nearest(event));
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  slider.addEventListener("focus", () => show(Number(slider.value)));
  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.addEventListener("blur", hide);
  slider.setAttribute("aria-valuetext", told(0).head);
}

const numbersIn = (text) => text.split(" ").map(Number);
const short = (number) => String(Number(Number(number).toPrecision(4)));

// A line has its own x where they are others than those of the line before.
function linesOf(svg) {
  let x = [];
  return all("polyline", svg).map((line) => {
    if (line.dataset.x) x = numbersIn(line.dataset.x);
    return {
      label: line.dataset.label,
      colour: [...line.classList].slice(1).join(" "),
      x,
      y: line.dataset.y.split(" ").map(short),
      ends: (line.dataset.ends || "").split(" "),
      px: line.getAttribute("points").split(" ").map((point) => Number(point.split(",")[0])),
    };
  });
}

function charts() {
  for (const figure of all(".chart")) {
    const plot = figure.querySelector(".plot");
    const svgs = all("svg", plot);
    const lines = linesOf(svgs[0]);
    const { width } = svgs[0].viewBox.baseVal;
    // Each x at which some line has a point, with its place in the drawing; both scales have the same.
    const stops = new Map(lines.flatMap((line) => line.x.map((x, at) => [x, line.px[at]])));
    const xs = [...stops.keys()].sort((a, b) => a - b);
    if (!xs.length) continue;
    const levels = all(".level", svgs[0]).map(({ dataset, classList }) => ({
      label: dataset.label, value: short(dataset.y), colour: `dashed ${classList[1]}`,
    }));
    const marks = all(".mark", svgs[0]).map((mark) => ({
      label: mark.dataset.label,
      x: numbersIn(mark.dataset.x),
      px: mark.getAttribute("d").match(/(?<=M)[\d.]+/g).map(Number),
    }));
    const cursors = svgs.map((svg) => {
      const cursor = document.createElementNS(svg.namespaceURI, "line");
      cursor.setAttribute("class", "cursor");
      svg.prepend(cursor);
      return cursor;
    });
    const nearest = (event) => {
      const box = plot.getBoundingClientRect();
      const px = ((event.clientX - box.left) / box.width) * width;
      const far = xs.map((x) => Math.abs(stops.get(x) - px));
      return far.indexOf(Math.min(...far));
    };
    // A line of fewer points tells its nearest one, where that is near.
    const told = (place) => {
      const px = stops.get(xs[place]);
      const rows = lines.flatMap(({ label, colour, y, ends, px: own }) => {
        const far = own.map((each) => Math.abs(each - px));
        const at = far.indexOf(Math.min(...far));
        const interval = ends[at] ? ` [${ends[at].replace(",", ", ")}]` : "";
        return far[at] <= 4 ? [{ label, value: y[at] + interval, colour }] : [];
      });
      const marked = marks.flatMap(({ label, x, px: own }) => {
        const near = x.filter((_, at) => Math.abs(own[at] - px) <= 4);
        return near.length ? [{ label, value: `at ${near.slice(0, 3).join(", ")}`, colour: "upright" }] : [];
      });
      return { head: `${svgs[0].dataset.axis}: ${xs[place]}`, rows: [...rows, ...levels, ...marked], x: px / width };
    };
    const mark = (place) => {
      for (const cursor of cursors) {
        cursor.style.visibility = place === null ? "hidden" : "visible";
        if (place === null) continue;
        for (const [name, value] of Object.entries({ x1: stops.get(xs[place]), x2: stops.get(xs[place]), y1: 10, y2: 200 }))
          cursor.setAttribute(name, value);
      }
    };
    readable(plot, figure.querySelector(".title").textContent, xs.length, nearest, told, mark);
  }
}

function heatMaps() {
  const maps = JSON.parse(byId("heat-values").textContent);
  all(".heat .plot").forEach((plot, index) => {
    const { title, row, rows, columns, ids, values } = maps[index];
    const outline = make("div", { className: "outline", hidden: true });
    plot.append(outline);
    const wide = columns.length;
    const count = values.flat().filter((value) => value !== null).length; // only the last places may be without a cell
    const cell = (place) => [Math.floor(place / wide), place % wide];
    const nearest = (event) => {
      const box = plot.querySelector("img").getBoundingClientRect();
      const part = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
      const down = part((event.clientY - box.top) / box.height, rows.length);
      return Math.min(down * wide + part((event.clientX - box.left) / box.width, wide), count - 1);
    };
    const told = (place) => {
      const [down, across] = cell(place);
      const id = columns[across] + (row ? 0 : rows[down]);
      const name = ids > 1 ? `ids from ${id}` : `id ${id}`;
      return {
        head: row ? `${row} ${rows[down]}, ${name}` : name,
        rows: [{ value: `${values[down][across]} × uniform use` }],
        x: (across + 0.5) / wide,
      };
    };
    const mark = (place) => {
      outline.hidden = place === null;
      if (place === null) return;
      const [down, across] = cell(place);
      const image = plot.querySelector("img");
      Object.assign(outline.style, {
        left: `${(across / wide) * 100}%`,
        top: `${(down / rows.length) * image.clientHeight}px`,
        width: `${100 / wide}%`,
        height: `${image.clientHeight / rows.length}px`,
      });
    };
    readable(plot, title, count, nearest, told, mark);
  });
}

for (const element of all(".js-only")) element.hidden = false;
if (byId("zoom")) zooming();
if (byId("keep")) gallery();
filters();
charts();
if (byId("heat-values")) heatMaps();
