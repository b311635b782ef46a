"""Flax modules: recurrent networks that ponder, and what they are made of."""

from actjax.nn.act import ACT as ACT
from actjax.nn.act import RNN as RNN
from actjax.nn.act import Repeat as Repeat
from actjax.nn.cells import Recurrent as Recurrent
from actjax.nn.lfact import LFACT as LFACT
from actjax.nn.pondernet import PonderNet as PonderNet
from actjax.nn.recursive import Recursive as Recursive
from actjax.nn.recursive import Thought as Thought
from actjax.nn.seq2seq import Decoded as Decoded
from actjax.nn.seq2seq import Seq2Seq as Seq2Seq
from actjax.nn.transformer import Block as Block
from actjax.nn.transformer import UniversalTransformer as UniversalTransformer

__all__ = [
    "ACT",
    "LFACT",
    "RNN",
    "Block",
    "Decoded",
    "PonderNet",
    "Recurrent",
    "Recursive",
    "Repeat",
    "Seq2Seq",
    "Thought",
    "UniversalTransformer",
]
