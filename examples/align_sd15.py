"""Stable Diffusion 1.5 aligned with the aesthetic score, not fine-tuned. `--tiny` needs no weights and no network.

python examples/align_sd15.py --prior models/sd15 --clip models/clip-vit-large-patch14 --head aesthetic.safetensors
"""

import argparse
import sys
from pathlib import Path

from bbo.align import Alignment, align
from bbo.align_folder import AlignFolder
from bbo.display import print_aligned
from experiments.tiny_pipelines import tiny_folder
from experiments.tiny_rewards import tiny_clip, tiny_head
from oracles.images.aesthetic import Aesthetic
from smc.priors.pipelines import StableDiffusionPrior
from smc.sampler import SamplerConfig

parser, needs = argparse.ArgumentParser(), "--tiny" not in sys.argv
parser.add_argument("--prior", type=Path, required=needs, help="folder of a StableDiffusionPipeline")
parser.add_argument("--clip", type=Path, required=needs, help="folder of CLIP ViT-L/14")
parser.add_argument("--head", type=Path, required=needs, help="the aesthetic head, as safetensors")
parser.add_argument("--prompts", nargs="+", default=["cat", "dog", "horse"])
parser.add_argument("--out", type=Path, default=Path("runs/align_sd15"))
parser.add_argument("--device", default="cpu")
parser.add_argument("--tiny", action="store_true", help="random weights at toy size, in a few seconds")
options = parser.parse_args()
if options.tiny:
    options.prior, options.clip, options.head = tiny_folder("stable_diffusion"), tiny_clip(), tiny_head()

prior = StableDiffusionPrior.from_pretrained(
    options.prior, prompts=options.prompts, n_steps=5 if options.tiny else 100
)
reward = Aesthetic.load(options.head, options.clip).to(options.device)
sampler = SamplerConfig(n_particles=4, max_batch=4)
alignment = Alignment(prior.to(options.device), reward, kl_coef=0.005, sampler=sampler)  # the paper's kl_coef
folder = AlignFolder.open(options.out, alignment)
for island in align(alignment, folder.done):
    folder.add(island)
    print_aligned(island, alignment.n_images)
