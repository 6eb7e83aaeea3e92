"""Whether an HTML page can be read: by the parser of Python's library."""

import html.parser

from flextok import storage

EMPTY_ELEMENTS = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def problems_of(url: str) -> list[str]:
    """What keeps the page at `url` from being read, at most a line each; nothing for a good one."""
    try:
        text = storage.read_bytes(url).decode()
    except FileNotFoundError:
        return [f"{url} is not there"]
    except UnicodeDecodeError:
        return [f"{url} is not UTF-8"]
    page = _Page()
    page.feed(text)
    page.close()
    found = [f"{url} loads {address[:80]}, expected everything within it" for address in page.loaded[:1]]
    if page.open:
        found.append(f"{url} ends within <{page.open[-1]}>")
    if "h1" not in page.seen:
        found.append(f"{url} has no heading")
    return found


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.loaded: list[str] = []
        """Addresses of what is not in the page itself."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)
        names = ("src", "href") if tag in ("link", "image", "use") else ("src",)
        addresses = [value for name, value in attrs if name in names and value]
        self.loaded += [address for address in addresses if not address.startswith(("data:", "#"))]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass
