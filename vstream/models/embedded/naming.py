"""Names what a picture shows, as specifically as the classifier is sure of: "Egyptian cat", "cat" or "animal".

Every ImageNet class has a name, a group and a kind, each broader than the one before (`names.tsv`, from WordNet). The
name of a frame is the one that says most, weighted by how likely it is right: Deng et al., "Hedging Your Bets" (2012).
One that is less likely than `NAME_NEEDS` gives way to its group or kind: "a dog" is better than a wrong breed.
It knows nothing of pictures, tokens or language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

SAYS = (1.0, 0.8, 0.5)  # how much a name, a group and a kind say
NAME_NEEDS = 0.4  # the probability below which no name is given, however little the rest would say
NOISE = 0.02  # probabilities below it are: the animals alone are 398 classes, and would add up to something
ALIKE = 0.6  # cosine of neighbours' features: about 0.95 and more within a scene, 0.25 and less across a cut
TABLE = "names.tsv"


@dataclass(frozen=True)
class Named:
    """What a frame shows.

    Attributes:
        chain: the name chosen and all that are broader, at most three: ("Egyptian cat", "cat", "animal").
        probability: that it is right, as the classifier sees it.
        colour: of the thing, empty where it is not sure.
        place: where in the picture it is.
    """

    chain: tuple[str, ...]
    probability: float = 1.0
    colour: str = ""
    place: str = "middle"

    @property
    def name(self) -> str:
        """The most specific one."""
        return self.chain[0]

    @property
    def broader(self) -> str:
        """The next broader one, empty if there is none."""
        return self.chain[1] if len(self.chain) > 1 else ""


def goes_on(features: Tensor) -> list[bool]:
    """Whether frames 1 to T - 1 go on with the one before; a cut is where features [T, D] change much."""
    alike = torch.cosine_similarity(features[1:], features[:-1], dim=-1).tolist()
    return [similarity >= ALIKE for similarity in alike]


def running_means(rows: Tensor, joined: Sequence[bool]) -> Tensor:
    """Rows [T, N], each averaged with those before it as far back as `joined` [T - 1] is true; none with later ones."""
    means, since = [], 0
    for index in range(len(rows)):
        since = since if index and joined[index - 1] else index
        means.append(rows[since : index + 1].mean(0))
    return torch.stack(means)


class Names:
    """The hierarchy.

    Attributes:
        rows: name, group and kind of each of the 1000 classes.
        chains: every chain that can be chosen: those that begin with a name, then with a group, then with a kind.
    """

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = list(rows)
        levels = [list(dict.fromkeys(tuple(dict.fromkeys(row[level:])) for row in rows)) for level in range(3)]
        self.chains = [chain for level in levels for chain in level]
        kinds = {row[2] for row in rows}
        self._is_kind = torch.tensor([chain[0] in kinds for chain in self.chains])  # [C]
        self._is_name = torch.arange(len(self.chains)) < len(levels[0])
        says = torch.full((len(self.chains),), SAYS[1]).masked_fill(self._is_name, SAYS[0])
        self._says = says.masked_fill(self._is_kind, SAYS[2])
        self._belongs = torch.cat([self._membership(level, chains) for level, chains in enumerate(levels)])  # [C, 1000]

    def _membership(self, level: int, chains: list[tuple[str, ...]]) -> Tensor:
        """Which classes each chain of a level stands for, [C, 1000] of 0 and 1."""
        at = {chain: index for index, chain in enumerate(chains)}
        belongs = torch.zeros(len(chains), len(self.rows))
        for index, row in enumerate(self.rows):
            belongs[at[tuple(dict.fromkeys(row[level:]))], index] = 1
        return belongs

    def name(self, likely: Tensor) -> list[Named]:
        """The name of each of T frames with class probabilities [T, 1000]."""
        likely = likely.float().cpu()
        mass = likely.where(likely >= NOISE, 0) @ self._belongs.T  # [T, C]
        worth = (mass * self._says).masked_fill(self._is_name & (mass < NAME_NEEDS), 0)
        worth += 1e-6 * self._is_kind * (likely @ self._belongs.T)  # where all is noise, the likeliest kind
        best = worth.argmax(-1).tolist()
        return [Named(self.chains[at], float(row[at])) for at, row in zip(best, mass, strict=True)]


def load_names() -> Names:
    """The hierarchy that the package carries."""
    text = resources.files(__package__).joinpath(TABLE).read_text("utf-8")
    return Names([_row(line) for line in text.splitlines()])


def _row(line: str) -> tuple[str, str, str]:
    name, group, kind = line.split("\t")
    return name, group, kind
