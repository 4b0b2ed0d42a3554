"""The contact sheet of a training set (X3), put together of what was made where the frames were."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings, Sample

from services.preprocess.pieces import SERVICE, load_sheet
from services.runtime.objects import Objects, StoredBlob
from trainer.pages.contact_sheet import SheetSample, render_contact_sheet

HTML = "text/html; charset=utf-8"
# About 50 kB each: a page of more could not be opened.
MAX_SAMPLES = 500


def store_sheet_page(
    name: str,
    settings: PreprocessSettings,
    samples: Sequence[tuple[Sample, Blob]],
    paths: Mapping[str, str],
    objects: Objects,
) -> StoredBlob:
    """One page with the first 500 training samples, in the store. `paths`: of the clips, by their names."""
    scenes = Counter(sample.clip for sample, _ in samples)
    shown = []
    for sample, blob in samples[:MAX_SAMPLES]:
        pictures, waveform = load_sheet(objects.get_bytes(blob.key, sha256=blob.sha256))
        shown.append(
            SheetSample(
                path=paths[sample.clip],
                scene=f"scene from frame {sample.start_frame}" if sample.start_frame or scenes[sample.clip] > 1 else "",
                name=sample.name.removeprefix(f"{name}/"),
                caption=sample.caption,
                thumbnails=pictures,
                peaks=waveform,
                width=settings.training.width,
                height=settings.training.height,
                frame_count=sample.frame_count,
                frame_rate=sample.frame_rate,
                note=f"played at {sample.speed:.2f} times its speed" if sample.speed != 1 else "",
            )
        )
    more = f" (the first {MAX_SAMPLES} of {len(samples)} samples)" if len(samples) > MAX_SAMPLES else ""
    page = render_contact_sheet(name + more, settings.conditioning_frames, shown)
    return objects.put_content(SERVICE, page.encode(), HTML)
