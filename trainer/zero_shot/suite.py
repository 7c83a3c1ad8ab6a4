"""The ten data sets, in the order of the paper's table."""

from __future__ import annotations

from typing import Final

from trainer.zero_shot.cc_neg import CC_NEG
from trainer.zero_shot.circo import CIRCO
from trainer.zero_shot.flickr30k import FLICKR30K
from trainer.zero_shot.genecis import GENECIS
from trainer.zero_shot.mt_fiq import MT_FIQ
from trainer.zero_shot.sharegpt4v import SHAREGPT4V
from trainer.zero_shot.sugar_crepe import SUGAR_CREPE
from trainer.zero_shot.urban1k import URBAN1K
from trainer.zero_shot.visdial import VISDIAL
from trainer.zero_shot.vist import VIST

DATASETS: Final = (SHAREGPT4V, URBAN1K, FLICKR30K, CIRCO, GENECIS, VISDIAL, VIST, MT_FIQ, CC_NEG, SUGAR_CREPE)
