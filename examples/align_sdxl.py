"""Stable Diffusion XL aligned with PickScore, without fine-tuning. `--tiny` needs no weights and no network.

python examples/align_sdxl.py --prior models/sdxl --pick-score models/PickScore_v1 --device cuda
"""

import argparse
import sys
from pathlib import Path

from bbo.align import Alignment, align
from bbo.align_folder import AlignFolder
from bbo.display import print_aligned
from experiments.tiny_pipelines import tiny_folder
from experiments.tiny_rewards import tiny_clip
from oracles.images.clip_rewards import PickScore
from smc.priors.pipelines import Dtype, Precision, StableDiffusionXLPrior
from smc.sampler import SamplerConfig

parser, needs = argparse.ArgumentParser(), "--tiny" not in sys.argv
parser.add_argument("--prior", type=Path, required=needs, help="folder of a StableDiffusionXLPipeline")
parser.add_argument("--pick-score", type=Path, required=needs, help="folder of PickScore's CLIP")
parser.add_argument("--prompts", nargs="+", default=["a photo of a cat in the rain"])
parser.add_argument("--out", type=Path, default=Path("runs/align_sdxl"))
parser.add_argument("--device", default="cpu")
parser.add_argument("--tiny", action="store_true", help="random weights at toy size, in a few seconds")
options = parser.parse_args()
if options.tiny:
    options.prior, options.pick_score = tiny_folder("stable_diffusion_xl"), tiny_clip()
prior = StableDiffusionXLPrior.from_pretrained(
    options.prior,
    prompts=options.prompts,
    n_steps=5 if options.tiny else 50,
    precision=Precision(weights=Dtype.BFLOAT16, slicing=True),
).to(options.device)
reward = PickScore.load(options.pick_score).to(options.device)
alignment = Alignment(prior, reward, kl_coef=0.01, sampler=SamplerConfig(n_particles=4, max_batch=2))
folder = AlignFolder.open(options.out, alignment)
for island in align(alignment, folder.done):
    folder.add(island)
    print_aligned(island, alignment.n_images)
