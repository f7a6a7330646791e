# Trains gates on a frozen model or imports released ones; searches MoA's plans and MInference's patterns.
rule import_gates:
    input:
        model=lambda wildcards: PRESET.import_gates(wildcards.gates).model.files,
    output:
        gates=RUN / "gates/{gates}.safetensors",
    log:
        f"{LOGS}/import-gates-{{gates}}.log",
    wildcard_constraints:
        gates=one_of(PRESET.released_gates()),
    params:
        preset=REFERENCE,
        results=RUN.parent,
        settings=lambda wildcards: PRESET.settings("gates", wildcards.gates),
        source=code_of("models/released_gates.py"),
    shell:
        "seerbench import-gates --results {params.results:q} -- {params.preset:q} {wildcards.gates:q} 2> {log:q}"


rule distill:
    input:
        tokens=lambda wildcards: PRESET.distill(wildcards.gates).tokens,
        model=lambda wildcards: PRESET.distill(wildcards.gates).model.files,
    output:
        gates=RUN / "gates/{gates}.safetensors",
        rows=RUN / "training/distill-{gates}.parquet",
    log:
        f"{LOGS}/distill-{{gates}}.log",
    benchmark:
        f"{LOGS}/cost/distill-{{gates}}.jsonl"
    wildcard_constraints:
        gates=one_of(PRESET.trained_gates()),
    resources:
        gpu=lambda wildcards: gpus(PRESET.distill(wildcards.gates).processes),
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=lambda wildcards: PRESET.settings("gates", wildcards.gates),
        source=code_of(
            "training/distill.py",
            "training/loop.py",
            "training/optimizers.py",
            "training/batches.py",
            "training/fsdp.py",
            "methods/gate.py",
            "methods/gate_config.py",
            "methods/gate_losses.py",
        ),
        launcher=lambda wildcards: launcher(PRESET.distill(wildcards.gates).processes),
    shell:
        "{params.launcher}seerbench distill --results {params.results:q} -- {params.preset:q} {wildcards.gates:q} 2> {log:q}"


rule profile:
    input:
        tokens=lambda wildcards: PRESET.profile(wildcards.model).tokens.file,
        model=lambda wildcards: PRESET.profile(wildcards.model).model.files,
    output:
        plans=[
            PRESET.paths.moa_plan("{model}", *budget)
            for budget in PRESET.moa_budgets()
        ],
    log:
        f"{LOGS}/profile-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/profile-{{model}}.jsonl"
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=[PRESET.settings("profile"), PRESET.moa_budgets()],
        source=TIMED,
    shell:
        "seerbench profile --results {params.results:q} -- {params.preset:q} {wildcards.model:q} 2> {log:q}"


rule patterns:
    input:
        tokens=lambda wildcards: PRESET.patterns(wildcards.model).tokens.file,
        tokenizer=lambda wildcards: PRESET.patterns(wildcards.model).tokenizer.files,
        model=lambda wildcards: PRESET.patterns(wildcards.model).model.files,
    output:
        patterns=PRESET.paths.minference_patterns("{model}"),
    log:
        f"{LOGS}/patterns-{{model}}.log",
    benchmark:
        f"{LOGS}/cost/patterns-{{model}}.jsonl"
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=PRESET.settings("profile"),
        source=TIMED,
    shell:
        "seerbench patterns --results {params.results:q} -- {params.preset:q} {wildcards.model:q} 2> {log:q}"
