"""A latent consistency model aligned with two rewards at once, in eight steps. `--tiny` needs no weights, no network.

python examples/align_lcm.py --prior models/lcm --clip models/clip-vit-large-patch14 --head aesthetic.safetensors
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
from oracles.images.clip_rewards import ClipScore
from oracles.images.reward import WeightedSum
from smc.priors.pipelines import LatentConsistencyPrior

parser, needs = argparse.ArgumentParser(), "--tiny" not in sys.argv
parser.add_argument("--prior", type=Path, required=needs, help="folder of a LatentConsistencyModelPipeline")
parser.add_argument("--clip", type=Path, required=needs, help="folder of CLIP ViT-L/14")
parser.add_argument("--head", type=Path, required=needs, help="the aesthetic head, as safetensors")
parser.add_argument("--prompts", nargs="+", default=["a photo of a red house"])
parser.add_argument("--out", type=Path, default=Path("runs/align_lcm"))
parser.add_argument("--device", default="cpu")
parser.add_argument("--tiny", action="store_true", help="random weights at toy size, in a few seconds")
options = parser.parse_args()
if options.tiny:
    options.prior, options.clip, options.head = tiny_folder("latent_consistency"), tiny_clip(), tiny_head()

prior = LatentConsistencyPrior.from_pretrained(options.prior, prompts=options.prompts).to(options.device)
score, match = Aesthetic.load(options.head, options.clip), ClipScore.load(options.clip)  # one copy of CLIP
reward = WeightedSum([score.to(options.device), match.to(options.device)], [1.0, 5.0])
alignment = Alignment(prior, reward, kl_coef=0.02, images_per_prompt=2)
folder = AlignFolder.open(options.out, alignment)
for island in align(alignment, folder.done):
    folder.add(island)
    print_aligned(island, alignment.n_images)
