"""`vit-clt fidelity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from vit_clt.choices import TokenKind, TranscoderKind
from vit_clt.cli.command import StudyOptions
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.options import check_clts, check_device
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import cascade_work, fit_work, reconstruction_work
from vit_clt.cli.told import told
from vit_clt.cli.train import Train
from vit_clt.cli.training_options import TrainingOptions, starting_options
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.outputs import OutputFolder
    from vit_clt.readouts.base import Classifier
    from vit_clt.transcoder.saved import SavedCLTs

STUDY_FILE, RUNS = "study.json", "runs"


@dataclass(kw_only=True)
class Fidelity(ReadoutOptions, StudyOptions, TrainingOptions):
    """Fidelity against sparsity: a CLT and a per-layer transcoder at each k, side by side.

    Each run has a folder in OUT/runs, which is itself a --clt; --resume skips finished runs. The
    data options name the images that are measured, --train-data those that are trained on.

    Example: vit-clt fidelity --data digits --k 4 8 16 32 --n-features 512 --out out/fidelity
    """

    trains = True
    uncommon = ("lr", "epochs", "batch_size", "readout")
    begun = STUDY_FILE

    k: tuple[int, ...] = ()
    """Numbers of active features per token row and layer (for JumpReLU: targets of L0). For each
    number one transcoder of each kind is trained."""
    kinds: tuple[TranscoderKind, ...] = ("clt", "plt")
    """Kinds of transcoder: cross-layer (clt), per-layer (plt), or both."""
    clts: tuple[str, ...] = ()
    """Measure these CLT folders or Hub ids, already trained, instead of training."""
    tokens: TokenKind = "all"
    """Token rows whose MLP outputs are replaced in every layer."""
    resume: bool = False
    """Go on with the study in --out; finished runs are kept, and further --k may be given."""

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Fidelity:
        """The options' defaults, which depend on --preset."""
        start = cls(out=Path(), **starting_options(args))
        start.out = tyro.MISSING  # the option is required
        return start

    def known_model(self) -> str | None:
        """The name of the ViT; given CLTs say it where --model does not."""
        return self.model if self.clts else super().known_model()

    def check(self) -> None:
        """Refuse options that contradict one another, and CLTs that are not there."""
        from vit_clt.training.processes import n_processes

        if bool(self.k) == bool(self.clts):
            state = "both set" if self.k else "both missing"
            raise InputError(f"--k and --clts are {state}; expected one of them.")
        self.refuse_both(overwrite=self.overwrite, resume=self.resume)
        if self.resume and self.clts:
            raise InputError(
                "resume", "is set with --clts, which are not trained; expected --k with it."
            )
        for name in ("k", "clts", "kinds"):
            values = getattr(self, name)
            for value in values:
                if values.count(value) > 1:
                    raise InputError(name, f"holds {value} twice; expected each once.")
        if not self.kinds:
            raise InputError("kinds", 'is empty; expected "clt", "plt" or both.')
        if self.k and min(self.k) < 1:
            raise InputError("k", f"is {min(self.k)}; expected at least 1.")
        target = self.sparsifier_training().sparsity.l0_target
        if target is not None:
            raise InputError("l0", f"is {target}; expected --k, which each run is steered to.")
        if n_processes() != 1:
            raise InputError(
                f"processes are {n_processes()}; expected one: train on several with vit-clt "
                "train, then give the results as --clts."
            )
        check_clts("clts", self.clts)
        super().check()

    def work(self, of: Scope) -> Work:
        """For each transcoder its fit, and the replaced pass of all layers beside two floors."""
        n = of.images
        one = reconstruction_work(of, n) + cascade_work(of, n, [0], [self.tokens])
        return len(self.clts or self.k * len(self.kinds)) * (fit_work(of) + one)

    def run(self) -> None:
        """Train what is missing, measure, and report."""
        from vit_clt.analysis.fit import fidelity_study
        from vit_clt.analysis.fit.training_study import Training
        from vit_clt.analysis.reporting.study import study_files
        from vit_clt.training.run_folder import FILES
        from vit_clt.transcoder.saved import SavedCLTs

        of_a_run = (*FILES, *study_files(Training))
        folder = self.folder_of(
            fidelity_study.Fidelity,
            more=[STUDY_FILE, *(f"{RUNS}/*/{name}" for name in of_a_run)],
            begun=None if self.clts else self.begun,
            resume=self.resume,
        )
        check_device(self.device)
        provenance: dict[str, Any] = {}
        if self.clts:
            clts = SavedCLTs.named(self.clts, self.device)
            vit, data = self._measured(clts)
            classifier, trained_on = self.classifier(vit, data, self.training.seed), None
            provenance["clts"] = clts.places
            _, first = next(iter(clts))
            self.tell(vit, data, [first])
        else:
            runs = self._runs()
            vit, data, classifier, trained_on = self._trained(runs, folder)
            clts = SavedCLTs({name: str(run.out) for name, run in runs.items()}, self.device)
            provenance["clts"] = {name: str(self.out / RUNS / name) for name in runs}
            provenance["train"] = asdict(self.training)
        # one CLT is in memory at a time
        fits = [fit for pair in clts for fit in measured_fits(vit, dict([pair]), data)]
        result = fidelity_study.fidelity(
            vit,
            clts,
            data,
            classifier,
            tokens=self.tokens,
            seed=self.training.seed,
            trained_on=trained_on,
            provenance=provenance,
            progress=True,
        )
        self.report(folder, result, "fidelity", fits=fits)

    def _runs(self) -> dict[str, Train]:
        """A training run for each k and kind, by name."""
        runs = {}
        for k in self.k:
            for kind in self.kinds:
                name = f"{kind}_k{k}"
                runs[name] = Train(
                    **{option: getattr(self, option) for option in _SHARED},
                    data=self.train_data or self.data,
                    limit=self.train_limit,
                    k=k,
                    cross_layer=kind == "clt",
                    out=self.out / RUNS / name,
                    resume=True,
                )
        return runs

    # ---- training ---------------------------------------------------------------------------

    def _trained(
        self, runs: dict[str, Train], folder: OutputFolder
    ) -> tuple[HookedViT, ImageData, Classifier, str]:
        """Train every run.

        Returns the model, the images to measure, their readout, and the name of the images trained
        on.
        """
        import torch

        from vit_clt.training.trainer import check_run

        vit = self.load_vit(self.device)
        data = self.load_images(vit)
        trained = self.load_train_images(vit, data)
        classifier = self.classifier(vit, data, self.training.seed)
        for run in runs.values():
            config = run.clt_config(vit.cfg.n_layers, vit.cfg.d_model)
            check_run(
                vit, config, run.sparsifier_training(), len(trained), torch.device(self.device)
            )
        self._tell_all(vit, data, trained, runs, folder)
        folder.open()
        if not folder.resumes:
            folder.begin(self.as_json())
        for i, (name, run) in enumerate(runs.items(), start=1):
            print(f"{name} ({i} of {len(runs)})", flush=True)
            run.out = folder.place / RUNS / name
            run.run()
        trained_on = f"{trained.name}, {len(trained)} images, seed {self.training.seed}"
        return vit, data, classifier, trained_on

    def _tell_all(
        self,
        vit: HookedViT,
        data: ImageData,
        trained: ImageData,
        runs: dict[str, Train],
        folder: OutputFolder,
    ) -> None:
        """Print what the trainings that are not finished and the study will take together."""
        from vit_clt.training.planned import PlannedRun
        from vit_clt.transcoder.model import CrossLayerTranscoder

        plans = {
            name: PlannedRun(
                vit,
                trained,
                run.clt_config(vit.cfg.n_layers, vit.cfg.d_model),
                run.settings(),
                self.device,
                run.cache,
            )
            for name, run in runs.items()
        }
        places = {name: folder.place / RUNS / name / "metrics.json" for name in plans}
        left = [plan for name, plan in plans.items() if not places[name].is_file()]
        first = CrossLayerTranscoder(next(iter(plans.values())).config).to(self.device).eval()
        study = told(vit, [first], data, self.work(Scope.of(vit, data, [first])))
        memory = max((sum(plan.needs().memory.values()) for plan in left), default=0)
        print(study.beside_training(sum(plan.seconds() for plan in left), memory), flush=True)

    # ---- trained CLTs -----------------------------------------------------------------------

    def _measured(self, clts: SavedCLTs) -> tuple[HookedViT, ImageData]:
        """The model of the given CLTs, checked against each of them, and the images."""
        from vit_clt.hooks import check_fits

        vit: HookedViT | None = None
        for name, clt in clts:
            if vit is None:
                vit = self.load_vit_of(clt, self.device)
            try:
                check_fits(vit, clt)
            except InputError as error:
                # this command has no --any-teacher
                raise InputError(f"{clts.places[name]}: {error.without_remedy()}") from error
        assert vit is not None
        return vit, self.load_images(vit)


_SHARED = (
    *("model", "pretrained", "image_column", "label_column", "class_names", "device"),
    *("preset", "sparsifier", "n_features", "sparsifier_settings", "cache", "training"),
)
