# Models: pre-training, and context extension (dense YaRN, or joint with gates).
PRETRAINED = PRESET.trained_models()
PROCESSES = PRESET.config.get("extend", {}).get("processes", 1)


rule train:
    input:
        reads("train", "model"),
    output:
        RUN / "models/{model}/config.json",
        RUN / "models/{model}/model.safetensors",
        RUN / "training/pretrain-{model}.parquet",
    log:
        f"{LOGS}/train-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/train-{{model}}.jsonl"
    wildcard_constraints:
        model="|".join(PRETRAINED) or "none",
    priority: 10
    threads: 2
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["models"][wildcards.model],
        source=trains_with("training/pretrain.py", "training/batches.py", "data/lookups.py"),
    shell:
        "seerbench train {params.where} {wildcards.model} 2> {log}"


rule finetune:
    input:
        reads("finetune", "model"),
    output:
        RUN / "models/{model}/config.json",
        RUN / "models/{model}/model.safetensors",
        RUN / "training/finetune-{model}.parquet",
    log:
        f"{LOGS}/finetune-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/finetune-{{model}}.jsonl"
    wildcard_constraints:
        model="yarn",
    resources:
        gpu=GPU * PROCESSES,
    params:
        where=WHERE,
        settings=PRESET.config.get("extend"),
        source=trains_with("training/finetune.py", "training/batches.py", "data/lookups.py", "training/fsdp.py"),
        launcher=launcher(PROCESSES),
    shell:
        "{params.launcher}seerbench finetune {params.where} {wildcards.model} 2> {log}"


use rule finetune as finetune_jointly with:
    output:
        RUN / "models/{model}/config.json",
        RUN / "models/{model}/model.safetensors",
        RUN / "models/{model}/gates.safetensors",
        RUN / "training/finetune-{model}.parquet",
    wildcard_constraints:
        model="joint-.+",
