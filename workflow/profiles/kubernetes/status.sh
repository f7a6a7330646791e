# status.sh NAME: what Snakemake wants to know of a Kubernetes Job: success, failed or running.
set -eu
counts=$(kubectl get job "$1" -o 'jsonpath={.status.succeeded}/{.status.failed}')
case "$counts" in
  1/*) echo success ;;
  */1) echo failed ;;
  *) echo running ;;
esac
