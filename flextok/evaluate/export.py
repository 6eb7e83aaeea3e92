"""Samples as one file for the evaluators of others."""

from flextok.data.npz import write_pictures
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.evaluate.sampling import open_samples, read_images
from flextok.runtime.progress import track
from flextok.runtime.storage_errors import storage_errors

BATCH = 64


@storage_errors("export {samples_url} to {dest}")
def export_samples(samples_url: str, dest: str, keep: int | None = None) -> int:
    """Put the pictures of samples at `keep` tokens (None: the most) into the file `dest` as ADM's evaluator takes them,
    `arr_0` uint8 [N, H, W, 3] in the order of the samples; gives back N. Raises UsageError where there are none at `keep`.
    """
    samples, _ = open_samples(samples_url)
    keep = samples.keep[-1] if keep is None else keep
    if keep not in samples.keep:
        raise UsageError(f"expected --keep among {samples.keep}, at which {samples_url} has pictures, found {keep}")
    if not dest.endswith(".npz"):
        raise UsageError(f"expected a name ending in .npz for the samples, found {dest}")
    keys = TokenStore.open(samples_url).keys()
    samples.require_pictures(len(keys), "the export")
    height, width, _ = read_images(samples_url, keep, keys[:1])[0].shape
    with track("export", len(keys), "images") as task:

        def batches():
            for start in range(0, len(keys), BATCH):
                images_BHWC = read_images(samples_url, keep, keys[start : start + BATCH])
                yield images_BHWC
                task.advance(len(images_BHWC))

        write_pictures(dest, (len(keys), height, width, 3), batches())
    return len(keys)
