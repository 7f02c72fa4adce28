"""What batches cost a processor core: from prepared tokens, and by tokenising a stream.

The batch is that of the preset 140m, 256 x 2048 tokens. Processor time is measured and not time
passed, since reading is to be compared with cores; files come from the system's cache.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report
import torch
from timing import show

from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.data import Batches, encode, load_corpus
from tasks.lm.shard_batches import ShardedBatches, load_shards
from tasks.lm.shards import MANIFEST, PARTS, TOKENIZER, Manifest, digest_of
from tasks.lm.prepare import PartWriter
from tasks.lm.tokenizer import Tokenizer, train_tokenizer
from tasks.planning.cluster import Cluster, duration
from tasks.planning.plan import Plan
from tasks.training.task import Task

pytestmark = pytest.mark.benchmark
PRESET, GPUS, STEPS = PRESETS["140m"], 8, 8
BATCH, CONTEXT = PRESET.train.batch_size, PRESET.data.context
# Of documents, log-normal about the mean of FineWeb-Edu.
MEAN_TOKENS, NUM_TOKENS = 1000, 50_000_000
