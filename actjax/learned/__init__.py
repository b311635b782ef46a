"""Optimizers that learn how to step and when to stop.

The way of the data: `features` of a gradient -> `network` (a coordinatewise LSTM) -> `heads` (a
score of stopping, and what it means) -> `prior` and `bound` (its distribution and its objective) ->
`meta` and `training` (unrolling and learning it) -> `columns`, `transform` and `stopping` (using
it) -> `minimum`. What stands before and behind such an optimizer in a chain: see `transform`.

Sources, by the names they have in these files:

    Sander 2017         Jörg Sander, "Probabilistic approach to Adaptive Computation Time in (Deep)
                        Neural Networks", master's thesis, University of Amsterdam, in two drafts,
                        neither published here. The *June text* (28 June 2017) counts steps from 1
                        and is what these files follow: equation numbers are its own. The *May
                        text* (24 May 2017) has the same model with steps counted from 0, and drops
                        a factor from p(t|T). `prior` says what is corrected in both.
    Andrychowicz 2016   "Learning to learn by gradient descent by gradient descent",
                        https://arxiv.org/abs/1606.04474: the LSTM optimizer and its features
    Graves 2016         "Adaptive Computation Time for Recurrent Neural Networks",
                        https://arxiv.org/abs/1603.08983: the halting rule of `actjax.halting`

The library's other two are Fojo 2018, "Comparing Fixed and Adaptive Computation Time for Recurrent
Neural Networks", https://arxiv.org/abs/1803.08165, and LFACT 2020, "Layer Flexible Adaptive
Computation Time for Recurrent Neural Networks", https://arxiv.org/abs/1812.02335.
"""

from actjax.learned.bound import amortisation_gap as amortisation_gap
from actjax.learned.bound import elbo as elbo
from actjax.learned.bound import horizon_elbo as horizon_elbo
from actjax.learned.bound import log_posterior as log_posterior
from actjax.learned.bound import oracle_logits as oracle_logits
from actjax.learned.files import load as load
from actjax.learned.files import save as save
from actjax.learned.heads import Graves as Graves
from actjax.learned.heads import HaltState as HaltState
from actjax.learned.heads import Head as Head
from actjax.learned.heads import Softmax as Softmax
from actjax.learned.heads import StickBreaking as StickBreaking
from actjax.learned.meta import LearnedOptimizer as LearnedOptimizer
from actjax.learned.minimum import Minimum as Minimum
from actjax.learned.minimum import minimize as minimize
from actjax.learned.network import CoordinatewiseLSTM as CoordinatewiseLSTM
from actjax.learned.network import GroupedLSTM as GroupedLSTM
from actjax.learned.network import LSTMState as LSTMState
from actjax.learned.prior import HorizonPrior as HorizonPrior
from actjax.learned.stopping import MassRule as MassRule
from actjax.learned.stopping import PriceRule as PriceRule
from actjax.learned.stopping import sampled as sampled
from actjax.learned.training import MetaExtra as MetaExtra
from actjax.learned.training import Objective as Objective
from actjax.learned.training import halting_objective as halting_objective
from actjax.learned.training import init_meta as init_meta
from actjax.learned.training import make_meta_step as make_meta_step
from actjax.learned.training import summed_loss as summed_loss
from actjax.learned.transform import ACTOptimizerState as ACTOptimizerState
from actjax.learned.transform import LSTMOptimizerState as LSTMOptimizerState
from actjax.learned.transform import act_optimizer as act_optimizer
from actjax.learned.transform import default_rule as default_rule
from actjax.learned.transform import freeze_when_halted as freeze_when_halted
from actjax.learned.transform import is_halted as is_halted
from actjax.learned.transform import lstm_optimizer as lstm_optimizer

__all__ = [
    "ACTOptimizerState",
    "CoordinatewiseLSTM",
    "Graves",
    "GroupedLSTM",
    "HaltState",
    "Head",
    "HorizonPrior",
    "LSTMOptimizerState",
    "LSTMState",
    "LearnedOptimizer",
    "MassRule",
    "MetaExtra",
    "Minimum",
    "Objective",
    "PriceRule",
    "Softmax",
    "StickBreaking",
    "act_optimizer",
    "amortisation_gap",
    "default_rule",
    "elbo",
    "freeze_when_halted",
    "halting_objective",
    "horizon_elbo",
    "init_meta",
    "is_halted",
    "load",
    "log_posterior",
    "lstm_optimizer",
    "make_meta_step",
    "minimize",
    "oracle_logits",
    "sampled",
    "save",
    "summed_loss",
]
