# Perplexity, retrieval tasks, block recall, gate maps.
rule perplexity:
    input:
        reads("perplexity", "experiment"),
    output:
        RUN / "perplexity/{experiment}.parquet",
    log:
        f"{LOGS}/perplexity-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/perplexity-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["perplexity"][wildcards.experiment],
        source=TIMED,
    shell:
        "seerbench perplexity {params.where} {wildcards.experiment} 2> {log}"


rule tasks:
    input:
        reads("tasks", "experiment"),
    output:
        RUN / "tasks/{experiment}.parquet",
    log:
        f"{LOGS}/tasks-{{experiment}}.log",
    benchmark:
        f"{LOGS}/cost/tasks-{{experiment}}.jsonl"
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["tasks"][wildcards.experiment],
        source=TIMED,
    shell:
        "seerbench tasks {params.where} {wildcards.experiment} 2> {log}"


rule recall:
    input:
        reads("recall", "experiment"),
    output:
        RUN / "recall/{experiment}.parquet",
    log:
        f"{LOGS}/recall-{{experiment}}.log",
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=lambda wildcards: PRESET.config["recall"][wildcards.experiment],
        source=TIMED,
    shell:
        "seerbench recall {params.where} {wildcards.experiment} 2> {log}"


rule maps:
    input:
        reads("maps"),
    output:
        RUN / "maps/maps.parquet",
    log:
        f"{LOGS}/maps.log",
    resources:
        gpu=GPU,
    params:
        where=WHERE,
        settings=PRESET.config.get("maps"),
        source=TIMED,
    shell:
        "seerbench maps {params.where} 2> {log}"
