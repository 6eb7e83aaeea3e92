"""Lineage out: OpenLineage events of every run, kept in the workspace and sent to a receiver where one is configured.

- `telling`: START, RUNNING and COMPLETE or FAIL around the body of every asset, whoever runs it;
- `endings`: the FAIL of a run whose process was killed, told by the next command or by Dagster's daemon;
- `record`: <workspace>/lineage/events.jsonl, which is complete and first; catalogues can also take that file as it is;
- `sender`: what stands there goes to the receiver that OpenLineage's client is configured for, now or later;
- `events` and `contents`: what stands in an event, and what an artifact holds.

A job is an asset, a dataset an asset or partition with the digest of its content as version facet; inputs are the
versions that the run read. `flextok lineage` needs none of this: it reads the artifacts themselves.
"""
