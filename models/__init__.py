"""Ranking models, one file each, built from `interactions`; each maps (dense, sparse) to (B,) logits.

L2 is not a model's: it is the `weight_decay` of the dense optimizer and of the row optimizer (which decays
only rows that a batch touches). Dropout and batch norm are options of the models whose papers use them.
"""

from tesserec.models.dcn import DCN
from tesserec.models.dcnv2 import DCNv2
from tesserec.models.deepfm import DeepFM
from tesserec.models.dlrm import DLRM
from tesserec.models.dlrm_dcnv2 import DLRMDCNv2
from tesserec.models.dnn import DNN
from tesserec.models.features import Features, ModelError
from tesserec.models.fm import FM
from tesserec.models.interactions import LowRank
from tesserec.models.lr import LR
from tesserec.models.registry import Option, build_model, describe, model_class, model_names
from tesserec.models.wide_deep import WideDeep

__all__ = [
    "DCN",
    "DLRM",
    "DNN",
    "FM",
    "LR",
    "DCNv2",
    "DLRMDCNv2",
    "DeepFM",
    "Features",
    "LowRank",
    "ModelError",
    "Option",
    "WideDeep",
    "build_model",
    "describe",
    "model_class",
    "model_names",
]
