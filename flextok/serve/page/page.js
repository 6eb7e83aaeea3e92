"use strict";
// Draws one image and shows its previews as they come. All text from outside is set as text, never as markup.
const form = document.getElementById("form");
const status = document.getElementById("status");
const previews = document.getElementById("previews");
const stop = document.getElementById("stop");
let running = null;

async function describe() {
  const health = await (await fetch("/health")).json();
  document.getElementById("label-field").hidden = health.condition !== "class";
  document.getElementById("text-field").hidden = health.condition !== "text";
  form.elements.label.max = Math.max(health.classes - 1, 0);
  form.elements.keep.max = form.elements.keep.value = health.positions;
}

function asked() {
  const fields = form.elements;
  const body = { keep: +fields.keep.value, seed: +fields.seed.value, guidance: +fields.guidance.value, stream: true };
  if (!document.getElementById("label-field").hidden) body.label = +fields.label.value;
  if (!document.getElementById("text-field").hidden) body.text = fields.text.value;
  return body;
}

function show(value) {
  const item = document.createElement("li");
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  image.src = "data:image/png;base64," + value.png;
  image.alt = caption.textContent = value.keep + (value.keep === 1 ? " token" : " tokens");
  figure.append(image, caption);
  item.append(figure);
  previews.append(item);
}

async function draw() {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch("/generate", { method: "POST", headers, body: JSON.stringify(asked()), signal: running.signal });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const found = JSON.parse(event.slice(event.indexOf("data: ") + 6));
      if (found.error) throw new Error(found.error);
      show(found);
    }
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) running.abort();
  const own = (running = new AbortController());
  previews.replaceChildren();
  status.textContent = "drawing";
  stop.disabled = false;
  try {
    await draw();
    status.textContent = "done";
  } catch (error) {
    if (own === running) status.textContent = error.name === "AbortError" ? "stopped" : error.message;
  } finally {
    if (own === running) stop.disabled = true;
  }
});
stop.addEventListener("click", () => running.abort());
describe().catch((error) => (status.textContent = error.message));
