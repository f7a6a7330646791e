# Measures perplexity, tasks and block recall, and records attention maps.
rule perplexity:
    input:
        tokens=lambda wildcards: PRESET.perplexity(wildcards.experiment).tokens.file,
        models=lambda wildcards: PRESET.perplexity(wildcards.experiment).model_files,
        gates=lambda wildcards: PRESET.perplexity(wildcards.experiment).gate_files,
        plans=lambda wildcards: PRESET.perplexity(wildcards.experiment).plan_files,
    output:
        rows=RUN / "perplexity/{experiment}.parquet",
    log:
        f"{LOGS}/perplexity-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/perplexity-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=lambda wildcards: PRESET.settings("perplexity", wildcards.experiment),
        source=TIMED,
    shell:
        "seerbench perplexity --results {params.results:q} -- {params.preset:q} {wildcards.experiment:q} 2> {log:q}"


rule tasks:
    input:
        tokens=lambda wildcards: PRESET.tasks(wildcards.experiment).token_files,
        tokenizer=lambda wildcards: PRESET.tasks(wildcards.experiment).tokenizer_files,
        models=lambda wildcards: PRESET.tasks(wildcards.experiment).model_files,
        gates=lambda wildcards: PRESET.tasks(wildcards.experiment).gate_files,
        plans=lambda wildcards: PRESET.tasks(wildcards.experiment).plan_files,
    output:
        rows=RUN / "tasks/{experiment}.parquet",
    log:
        f"{LOGS}/tasks-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/tasks-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=lambda wildcards: PRESET.settings("tasks", wildcards.experiment),
        source=TIMED,
    shell:
        "seerbench tasks --results {params.results:q} -- {params.preset:q} {wildcards.experiment:q} 2> {log:q}"


rule recall:
    input:
        tokens=lambda wildcards: PRESET.recall(wildcards.experiment).tokens.file,
        tokenizer=lambda wildcards: PRESET.recall(wildcards.experiment).tokenizer_files,
        models=lambda wildcards: PRESET.recall(wildcards.experiment).model_files,
        gates=lambda wildcards: PRESET.recall(wildcards.experiment).gate_files,
        plans=lambda wildcards: PRESET.recall(wildcards.experiment).plan_files,
    output:
        rows=RUN / "recall/{experiment}.parquet",
    log:
        f"{LOGS}/recall-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/recall-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=lambda wildcards: PRESET.settings("recall", wildcards.experiment),
        source=TIMED,
    shell:
        "seerbench recall --results {params.results:q} -- {params.preset:q} {wildcards.experiment:q} 2> {log:q}"


rule maps:
    input:
        tokens=lambda wildcards: PRESET.maps().tokens.file,
        model=lambda wildcards: PRESET.maps().model.files,
        gates=lambda wildcards: PRESET.maps().gates,
    output:
        rows=RUN / "maps/maps.parquet",
    log:
        f"{LOGS}/maps.log",
    resources:
        gpu=GPU,
    params:
        preset=REFERENCE,
        results=RUN.parent,
        setup=SETUP,
        settings=PRESET.settings("maps"),
        source=TIMED,
    shell:
        "seerbench maps --results {params.results:q} -- {params.preset:q} 2> {log:q}"
