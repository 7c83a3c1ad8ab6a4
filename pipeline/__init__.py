"""M-BEIR in, M-BEIR-CoT out. `build` is the driver; `docs/architecture.md` shows the order of the sub-packages.

The public interface, imported on first use:

    open_dataset        a built dataset: records, rejections, manifest
    export_dataset      a built dataset in another project's format
    annotate_queries    the annotations of some queries, without a build
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from schemas.lazy import import_when_asked

if TYPE_CHECKING:
    from pipeline.annotate.annotation import Annotation
    from pipeline.annotate.preview import annotate_queries
    from pipeline.dataset.built_dataset import BuiltDataset
    from pipeline.dataset.open_dataset import open_dataset
    from pipeline.export.export_dataset import export_dataset

__all__ = ["Annotation", "BuiltDataset", "annotate_queries", "export_dataset", "open_dataset"]

_PLACES: Final = {
    "Annotation": "pipeline.annotate.annotation",
    "BuiltDataset": "pipeline.dataset.built_dataset",
    "annotate_queries": "pipeline.annotate.preview",
    "export_dataset": "pipeline.export.export_dataset",
    "open_dataset": "pipeline.dataset.open_dataset",
}

logging.getLogger(__name__).addHandler(
    logging.NullHandler()
)  # silent until a command opens a log file or a caller adds a handler


__getattr__ = import_when_asked(__name__, _PLACES)
