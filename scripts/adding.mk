# Where does the adding model add? The study of docs/results/adding.md; `make adding` runs this.
#
# First the truth without a CLT (probes, ablations of MLPs and of attention), then CLTs and
# per-layer transcoders at k = 4, 8, 16, 32 and what each says: scores, cascade, ablation of
# sources, audit, features that compute. A step is a `vit-clt` command, or a part of
# scripts/adding_parts.py, with a folder of its own; it is finished once that holds metrics.json.
# After a kill the next call starts what is not finished; a training goes on from its checkpoint.

PYTHON ?= python3
OUT := out/adding
K := 4 8 16 32
export OMP_NUM_THREADS := 1

CLTS := $(K:%=clt_k%)
TRANSCODERS := $(foreach k,$(K),clt_k$(k) plt_k$(k))
ABLATED := mlp_resample attn_mean attn_resample mlp_mean_cls mlp_mean_patch
# make takes these in turn and leaves a step that has to wait for the end, so the two longest,
# audit and features, stand where the CLT that they need has been trained
STEPS := clt_k16 plt_k16 clt_k4 plt_k4 audit features clt_k8 plt_k8 clt_k32 plt_k32 truth \
	$(ABLATED) \
	$(foreach k,$(K),scores_k$(k) mlp_mean_k$(k) cascade_k$(k) ablate_k$(k)) \
	reconstruct fidelity
finished = $(1:%=$(OUT)/%/metrics.json)

MEASURED := --data adding --limit 2000
TRAINING := --epochs 3 --lr 2e-3 --start drawn --cls-weight 1 --no-cls-balance
TRAIN := -m vit_clt train --model adding --data adding --limit 10000 --n-features 512
ABLATE := -m vit_clt causal --model adding $(MEASURED)

# $(call step,ARGUMENTS): one step, on one core. What it prints goes to NAME.log; of a step that
# fails the last line is shown.
name = $(notdir $(@D))
define step
@mkdir -p $(OUT); echo "$(name) ..."; began=$$(date +%s); \
if $(PYTHON) $(1) --out $(@D) > $(OUT)/$(name).log 2>&1; \
then echo "$(name): $$(($$(date +%s) - began)) s," \
	"$$(ls $(OUT)/*/metrics.json | wc -l) of $(words $(STEPS)) steps are done"; \
else echo "step $(name) failed: $$(tail -n 1 $(OUT)/$(name).log)" >&2; exit 1; \
fi
endef

.PHONY: all
all: $(call finished,$(STEPS))

$(OUT)/clt_k%/metrics.json:
	$(call step,$(TRAIN) --k $* $(TRAINING) --resume)

$(OUT)/plt_k%/metrics.json:
	$(call step,$(TRAIN) --k $* $(TRAINING) --no-cross-layer --resume)

$(OUT)/audit/metrics.json: $(OUT)/clt_k16/metrics.json
	$(call step,-m vit_clt audit --clt $(<D) $(MEASURED) --train-limit 10000 $(TRAINING) --resume)

$(OUT)/features/metrics.json: $(OUT)/clt_k16/metrics.json
	$(call step,scripts/adding_parts.py features --clt $(<D) --overwrite)

$(OUT)/truth/metrics.json:
	$(call step,scripts/adding_parts.py truth --overwrite)

$(OUT)/mlp_resample/metrics.json:
	$(call step,$(ABLATE) --site mlp --fill resample --overwrite)

$(OUT)/attn_mean/metrics.json:
	$(call step,$(ABLATE) --site attn --fill mean --overwrite)

$(OUT)/attn_resample/metrics.json:
	$(call step,$(ABLATE) --site attn --fill resample --overwrite)

$(OUT)/mlp_mean_cls/metrics.json:
	$(call step,$(ABLATE) --ablated cls --overwrite)

$(OUT)/mlp_mean_patch/metrics.json:
	$(call step,$(ABLATE) --ablated patch --overwrite)

$(OUT)/scores_k%/metrics.json: $(OUT)/clt_k%/metrics.json
	$(call step,-m vit_clt contributions --clt $(<D) $(MEASURED) --overwrite)

# effects by mean ablation of MLPs, and whether this CLT's C ranks layers alike
$(OUT)/mlp_mean_k%/metrics.json: $(OUT)/clt_k%/metrics.json
	$(call step,-m vit_clt causal --clt $(<D) $(MEASURED) --overwrite)

$(OUT)/cascade_k%/metrics.json: $(OUT)/clt_k%/metrics.json
	$(call step,-m vit_clt cascade --clt $(<D) $(MEASURED) \
		$(if $(filter 16,$*),,--tokens all) --overwrite)

$(OUT)/ablate_k%/metrics.json: $(OUT)/clt_k%/metrics.json
	$(call step,-m vit_clt ablate --clt $(<D) $(MEASURED) --overwrite)

$(OUT)/reconstruct/metrics.json: $(call finished,$(CLTS))
	$(call step,-m vit_clt reconstruct --clt $(OUT)/clt_k16 $(MEASURED) \
		--compare $(patsubst %,$(OUT)/%,$(filter-out clt_k16,$(CLTS))) --overwrite)

$(OUT)/fidelity/metrics.json: $(call finished,$(TRANSCODERS))
	$(call step,-m vit_clt fidelity $(MEASURED) --clts $(TRANSCODERS:%=$(OUT)/%) --overwrite)
