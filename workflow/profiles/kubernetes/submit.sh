# submit.sh THREADS GPUS MEM_MB JOBSCRIPT: one Kubernetes Job that runs Snakemake's script; prints its name.
# The script changes into Snakemake's folder itself; the volume has to hold that, and the environment, at these paths.
set -eu
: "${SEERBENCH_K8S_CLAIM:?name the shared volume: export SEERBENCH_K8S_CLAIM=...}"
: "${SEERBENCH_K8S_MOUNT:?say where it is mounted: export SEERBENCH_K8S_MOUNT=/work}"
: "${SEERBENCH_K8S_IMAGE:?name an image with the Python of your environment: export SEERBENCH_K8S_IMAGE=...}"
name="seerbench-$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')"
gpus=""
if [ "$2" -gt 0 ]; then gpus=", nvidia.com/gpu: \"$2\""; fi
kubectl create -f - >&2 <<MANIFEST
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
  labels: {app: seerbench}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: step
          image: $SEERBENCH_K8S_IMAGE
          command: [sh, "$4"]
          resources:
            requests: {cpu: "$1", memory: ${3}M}
            limits: {memory: ${3}M$gpus}
          volumeMounts:
            - {name: shared, mountPath: $SEERBENCH_K8S_MOUNT}
            - {name: shm, mountPath: /dev/shm}
      volumes:
        - {name: shared, persistentVolumeClaim: {claimName: $SEERBENCH_K8S_CLAIM}}
        - {name: shm, emptyDir: {medium: Memory}}
MANIFEST
echo "$name"
