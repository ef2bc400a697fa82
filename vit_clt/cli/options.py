"""Options shared by commands; every option has one name everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

from vit_clt.choices import Gelu
from vit_clt.cli.command import Checked
from vit_clt.cli.layers import check_depth
from vit_clt.cli.loaded import once
from vit_clt.data.form_names import check_form
from vit_clt.errors import InputError, renamed
from vit_clt.hooks.towers.known_names import check_name
from vit_clt.inputs import read_text, reading
from vit_clt.teachers import SHIPPED
from vit_clt.transcoder.saved_files import saved_shape

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    import torch

    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds shapes and no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise InputError("device", f'is "{device}", which is not usable: {reason}.') from error


def load_clt(place: str, device: str, own: bool = False) -> CrossLayerTranscoder:
    """Load a CLT from its folder or Hub id.

    Args:
        place: the folder or id.
        device: where it is put.
        own: share it with no other command, as it will be altered.
    """
    from vit_clt.transcoder.model import CrossLayerTranscoder

    check_device(device)

    def load() -> CrossLayerTranscoder:
        return CrossLayerTranscoder.from_pretrained(place).to(device).eval()

    return load() if own else once(load, "clt", place, device)


def check_clts(field: str, places: Iterable[str]) -> None:
    """Refuse saved CLTs of which one is not there, or twice.

    Raises:
        InputError: as said, with the name of the option.
    """
    known = []
    for place in places:
        if place in known:
            raise InputError(field, f'holds "{place}" a second time; expected different CLTs.')
        known.append(place)
        with renamed(clt=field):
            saved_shape(place)


@dataclass(kw_only=True)
class VitOptions(Checked):
    """Options that name the ViT."""

    model: str | None = None
    """ViT: an open_clip name, timm:NAME, hf:NAME or hf:PATH (transformers), local-dir:PATH,
    hf-hub:ORG/NAME, or digits or adding, of this package. Default: digits, or the teacher of the
    CLT, which must be named if it is neither one of the package's nor one of open_clip's."""
    pretrained: str | None = None
    """Weights of the ViT: a tag of open_clip or timm, a file or folder, or random:SEED, which a CLT
    records ("random" is seed 0); none with hf:, local-dir: or hf-hub:, which have their own."""
    gelu: Gelu | None = None
    """What weights on disk were trained with, where nothing else says it."""

    def known_model(self) -> str | None:
        """The name of the ViT; None where only the files of a CLT on the Hub say it."""
        return self.model or "digits"

    def check(self) -> None:
        """Refuse a name that no library can have, and files that are missing."""
        model = self.known_model()
        if model is not None and (self.model is not None or model in SHIPPED):
            check_name(model, self.pretrained)
        super().check()

    def load_vit(self, device: str) -> HookedViT:
        """The hooked teacher on `device`."""
        from vit_clt.hooks import HookedViT

        check_device(device)
        model = self.model or "digits"
        check_name(model, self.pretrained)
        named = (model, self.pretrained)
        return once(
            lambda: HookedViT.load(*named, gelu=self.gelu, device=device),
            *("vit", *named, self.gelu, device),
        )

    def load_vit_of(self, clt: CrossLayerTranscoder, device: str) -> HookedViT:
        """Load --model, by default the model that `clt` was trained on.

        Raises:
            InputError: the CLT names a model that is only loaded when it is named by the user.
        """
        from vit_clt.hooks.teacher_files import unasked

        if self.model is None and clt.config.teacher is not None:
            self.model, self.pretrained = unasked(clt.config.teacher, self.pretrained)
        return self.load_vit(device)


@dataclass(kw_only=True)
class ModelOptions(VitOptions):
    """Options that name the ViT and the images."""

    default_split: ClassVar[str | None] = None
    """The split that is read where --split is not given; None stands for the held-out one."""

    data: str | None = None
    """Images: digits, adding, cifar10, cifar100, imagenet100 or coco (the last four from the Hub,
    or with :PATH from local files), parquet:PATH, imagefolder:PATH or hf:NAME. A model that comes
    with the package has its own images as default."""
    split: str | None = None
    """Split of the images; default: train for training, otherwise the held-out split (test;
    imagenet100: validation; coco: val)."""
    limit: int | None = None
    """Use only the first N images."""
    image_column: str | None = None
    """Column that holds the images; default: the column of type Image."""
    label_column: str | None = None
    """Column that holds the labels; default: the column of type ClassLabel."""
    class_names: Path | None = None
    """Text file with one class name per line, in label order."""

    def check(self) -> None:
        """Refuse images that cannot be loaded, as far as names and folders tell."""
        super().check()
        model = self.known_model()
        if self.data is not None:
            check_form(self.data, self.split or self.default_split)
        elif model in SHIPPED:
            check_form(str(model), self.split or self.default_split)
        elif model is not None:
            self._refuse_missing_data(model)
        self._names()

    def load_images(self, vit: HookedViT, split: str | None = None) -> ImageData:
        """Load the images in the preprocessing of `vit`.

        Args:
            vit: the ViT.
            split: the split where --split is not given; by default `default_split`.
        """
        from vit_clt.data.forms import load_data

        if self.data is None and vit.cfg.model not in SHIPPED:
            self._refuse_missing_data(vit.cfg.model)
        form, chosen = self.data or vit.cfg.model, self.split or split or self.default_split
        names = self._names()
        columns = (self.image_column, self.label_column)

        def load() -> ImageData:
            data = load_data(
                form,
                vit=vit,
                split=chosen,
                limit=self.limit,
                image_column=columns[0],
                label_column=columns[1],
                class_names=names,
            )
            for remark in data.remarks:
                print(f"{data.name}: {remark}")
            return data

        listed = None if names is None else tuple(names)
        return once(load, "images", vit, form, chosen, self.limit, *columns, listed)

    def _refuse_missing_data(self, model: str) -> NoReturn:
        raise InputError("data", f'is missing; model "{model}" needs images.')

    def _names(self) -> list[str] | None:
        if self.class_names is None:
            return None
        if not self.class_names.is_file():
            raise InputError("class_names", f"is {self.class_names}; found no such file.")
        with reading(self.class_names, "a text with a name a line", field="class_names"):
            text = read_text(self.class_names)
            return [line for line in text.splitlines() if line.strip()]


@dataclass(kw_only=True)
class MeasuredOptions(ModelOptions):
    """Options that name the ViT and the images that a study measures."""

    cache: Path | None = None
    """Folder in which the ViT's passes over the images are kept, exact to the last bit, and read by
    later studies of the same ViT and images; default: none, every study runs the ViT. It may be the
    folder of --cache in training."""

    def load_measured(self, vit: HookedViT) -> ImageData:
        """Load the images that are measured; with --cache their passes are kept."""
        from vit_clt.data.kept_passes import keep_passes
        from vit_clt.hooks.pass_store import PASSES

        data, cache = self.load_images(vit), self.cache
        if cache is None:
            return data
        return once(lambda: keep_passes(vit, data, cache / PASSES), "kept", vit, data, cache)


@dataclass(kw_only=True)
class CLTOptions(MeasuredOptions):
    """Options that name a trained CLT, its ViT and the images."""

    uncommon: ClassVar[tuple[str, ...]] = ("model", "pretrained")  # the CLT says them

    clt: str
    """Folder or Hub id of the CLT."""
    any_teacher: bool = False
    """Attach the CLT even to a model that it was not trained on, which every result then says."""

    def __post_init__(self) -> None:
        self._other_teachers: list[str] = []

    def warnings(self) -> Sequence[str]:
        """That a CLT is attached to a ViT that it was not trained on."""
        return self._other_teachers

    def known_model(self) -> str | None:
        """The name of the ViT: --model, or the one that the CLT says."""
        shape = saved_shape(self.clt)
        return self.model or (None if shape is None else shape.teacher or "digits")

    def check(self) -> None:
        """Refuse a CLT whose files are missing, or whose config.json describes none."""
        saved_shape(self.clt)
        super().check()

    def check_layers(self, name: str, layers: Sequence[int]) -> None:
        """Refuse layers that the CLT has not, where its config.json is at hand."""
        shape = saved_shape(self.clt)
        if shape is not None:
            check_depth(name, layers, shape.n_layers)

    def check_features(self, features: Sequence[tuple[int, int]]) -> None:
        """Refuse features, given by layer and number, that the CLT has not."""
        shape = saved_shape(self.clt)
        for layer, feature in features if shape else ():
            assert shape is not None
            for kind, number, count in (
                ("layers", layer, shape.n_layers),
                ("features", feature, shape.n_features),
            ):
                if number >= count:
                    raise InputError(
                        "feature", f"is {layer}:{feature}; expected {kind} from 0 to {count - 1}."
                    )

    def load_all(self, device: str) -> tuple[HookedViT, CrossLayerTranscoder, ImageData]:
        """Load the teacher, its CLT (checked against each other) and the images."""
        # --any-teacher has a CLT forget its own
        clt = load_clt(self.clt, device, own=self.any_teacher)
        vit = self.load_teacher(clt, device)
        return vit, clt, self.load_measured(vit)

    def load_teacher(self, clt: CrossLayerTranscoder, device: str) -> HookedViT:
        """Load --model, by default the model that `clt` was trained on, and check that both fit."""
        vit = self.load_vit_of(clt, device)
        self.check_teacher(vit, clt)
        return vit

    def check_teacher(self, vit: HookedViT, clt: CrossLayerTranscoder) -> None:
        """Refuse a CLT of another model; with --any-teacher, results say so instead."""
        from vit_clt.hooks import check_fits
        from vit_clt.hooks.replacement import teacher_difference

        if self.any_teacher and (difference := teacher_difference(vit, clt)):
            self._other_teachers.append(f"Teacher: not the one trained on; {difference}.")
            clt.forget_teacher()
        check_fits(vit, clt)


@dataclass(kw_only=True)
class CompareOptions(CLTOptions):
    """Options that name several CLTs of one teacher, its ViT and the images."""

    compare: tuple[str, ...] = ()
    """Further CLTs of the same teacher (folders or Hub ids), measured on the same images."""

    def check(self) -> None:
        """Refuse a CLT that is given twice, or whose files are missing."""
        if self.clt in self.compare:
            text = f'holds "{self.clt}" a second time; expected different CLTs.'
            raise InputError("compare", text)
        check_clts("compare", self.compare)
        super().check()

    def load_compared(
        self, device: str
    ) -> tuple[HookedViT, list[tuple[str, CrossLayerTranscoder]], ImageData]:
        """Load the teacher, every CLT with its name (--clt first), and the images.

        A CLT is named by the last part of its folder or Hub id, or by the whole of it if two CLTs
        would have the same name.

        Raises:
            InputError: a CLT is of another teacher or shape.
        """
        places = [self.clt, *self.compare]
        from vit_clt.transcoder.saved import distinct_names

        vit, first, data = self.load_all(device)
        clts = [first]
        for place in self.compare:
            try:
                clts.append(load_clt(place, device, own=self.any_teacher))
                self.check_teacher(vit, clts[-1])
            except InputError as error:
                text = f'holds "{place}": {error.without_remedy()}'
                raise InputError("compare", text, remedy=error.remedy) from error
        return vit, list(zip(distinct_names(places), clts, strict=True)), data


@dataclass(kw_only=True)
class TrainDataOptions(ModelOptions):
    """Options that name the images that something is fitted on, beside those it is measured on."""

    train_data: str | None = None
    """Images to train or fit on, a form as in --data; default: the train split of --data."""
    train_limit: int | None = None
    """Use only the first N of these images."""

    def check(self) -> None:
        """Refuse images to train on that cannot be loaded, as far as names and folders tell."""
        if self.train_data is not None:
            with renamed(data="train_data"):
                check_form(self.train_data, "train")
        super().check()

    def load_train_images(self, vit: HookedViT, data: ImageData) -> ImageData:
        """The images to train or fit on.

        Raises:
            InputError: they are those of `data`, which are measured on (`check_held_out`).
        """
        # --split names the images that are measured on
        options = replace(
            self, data=self.train_data or self.data, limit=self.train_limit, split=None
        )
        with renamed(data="train_data", limit="train_limit"):
            train = options.load_images(vit, "train")
        check_held_out(train, data)
        return train


def check_held_out(trained: ImageData, data: ImageData) -> None:
    """Refuse to measure on images that a transcoder, probe or threshold is fitted on.

    Raises:
        InputError: both are one split of one data set, or are the same images by
            `sampled_fingerprint`, whatever the form they are stored in.
    """
    from vit_clt.data.fingerprints import sampled_fingerprint

    same_split = (trained.name, trained.split) == (data.name, data.split)
    if same_split or sampled_fingerprint(trained) == sampled_fingerprint(data):
        raise InputError(
            "data",
            f"is {data.name}, the images trained on; expected held-out ones, with --train-data "
            "naming the others.",
        )
