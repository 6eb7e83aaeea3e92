"""Class ids of samples: from a label CSV, or from the names of the classes a source has."""

import hashlib
from dataclasses import dataclass, field

from flextok import storage
from flextok.data.config import CorpusConfig
from flextok.data.sources.base import InputError, RawInput
from flextok.data.sources.csv_table import csv_rows
from flextok.errors import UsageError


@dataclass(frozen=True)
class Labels:
    """The labelling of a corpus: `resolve` gives a sample's class id."""

    classes: list[str] | None
    by_source: tuple[list[str] | None, ...] = ()
    """The class names of each source by its own ids."""
    by_key: dict[str, int] | None = None
    """From the label CSV, when there is one; it goes before what the sources say."""
    ids: dict[str, int] = field(default_factory=dict)
    csv_sha256: str | None = None
    """Hash of the label CSV, None without one."""

    def resolve(self, raw: RawInput, source: int) -> int | None:
        """The class id of an input, None without a label; raises InputError when it has no place among the classes."""
        if self.by_key is not None:
            for key in raw.label_keys:
                if key in self.by_key:
                    return self.by_key[key]
            raise InputError("no_label", f"none of {', '.join(raw.label_keys)} is in the label CSV")
        own = self.by_source[source]
        label = raw.label
        if isinstance(label, int) and own is not None:
            if not 0 <= label < len(own):
                raise InputError("bad_metadata", f"class id {label} is not in 0..{len(own) - 1}")
            # Ids of sources that agree stay as they are, also where two classes have one name (ImageNet's crane).
            return label if own == self.classes else self.ids[own[label]]
        if isinstance(label, str):
            if label not in self.ids:
                raise InputError(
                    "bad_metadata", f"class {label!r} is not among the known ones; name them in a label CSV"
                )
            return self.ids[label]
        return label

    def name(self, label: int | None) -> str | None:
        """The name of a class id, if it has one."""
        return (
            self.classes[label]
            if label is not None and self.classes is not None and label < len(self.classes)
            else None
        )


def make_labels(config: CorpusConfig, source_classes: list[list[str] | None]) -> Labels:
    """The labelling of a corpus: the label CSV if given, else the class names of its sources. Raises UsageError."""
    url = label_csv_url(config)
    if url is not None:
        return _read_label_csv(config, url)
    named = [classes for classes in source_classes if classes is not None]
    if not named:
        return Labels(None, tuple(source_classes))
    agree = all(classes == named[0] for classes in named)
    classes = named[0] if agree else sorted({name for names in named for name in names})
    return Labels(classes, tuple(source_classes), ids={name: i for i, name in enumerate(classes)})


def label_csv_url(config: CorpusConfig) -> str | None:
    """Where the label CSV is: beside the pictures of the first source, or where its own path or URL says.

    A bare file name that is not beside the pictures is left out of account, so that one profile serves sources with
    and without a table; a path or URL must exist.
    """
    if config.label_csv is None:
        return None
    beside = storage.join(config.all_sources()[0].url, config.label_csv)
    if storage.exists(beside):
        return beside
    return config.label_csv if "/" in config.label_csv else None


def _read_label_csv(config: CorpusConfig, url: str) -> Labels:
    try:
        content = storage.read_bytes(url)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"corpus.label_csv: expected a UTF-8 CSV file in {url}, found: {error}") from None
    wanted = [config.label_key, config.label_name, *([config.label_id] if config.label_id else [])]
    rows = list(csv_rows(text, wanted))
    if not rows or any(column not in rows[0] for column in wanted):
        raise UsageError(
            f"corpus.label_csv: expected columns {', '.join(wanted)} in {url}, found {', '.join(rows[0]) if rows else 'no rows'}; "
            "rename them, or name others in a profile (label_key, label_name, label_id of corpus)"
        )
    names = [row[config.label_name] or "" for row in rows]
    if config.label_id is None:
        classes = sorted(set(names))
        ids = [classes.index(name) for name in names]
    else:
        ids = [_class_id(row[config.label_id], url) for row in rows]
        by_id = dict(zip(ids, names, strict=True))
        classes = [by_id.get(i, f"class {i}") for i in range(max(ids) + 1)]
    by_key = {row[config.label_key]: label for row, label in zip(rows, ids, strict=True)}
    return Labels(classes, by_key=by_key, csv_sha256=hashlib.sha256(content).hexdigest())


def _class_id(text: str | None, url: str) -> int:
    if text is None or not text.strip().isdecimal() or int(text) > 1_000_000:
        raise UsageError(f"corpus.label_csv: expected class ids 0, 1, 2, ... in {url}, found {text!r}")
    return int(text)
