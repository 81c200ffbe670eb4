# bash completion of thaw; made by `thaw completion bash`
_thaw() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
  local node=thaw offers='' values='' kind='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == -- ]]; then
      COMPREPLY=($(compgen -f -- "$cur"))
      return
    fi
    case "$node ${COMP_WORDS[i]}" in
    'thaw daemon' | 'thaw deploy' | 'thaw serve' | 'thaw init' | 'thaw ls' | 'thaw ps' | 'thaw logs' | 'thaw exec' | 'thaw scale' | 'thaw stop' | 'thaw rm' | 'thaw events' | 'thaw trace' | 'thaw checkpoint' | 'thaw image' | 'thaw secret' | 'thaw token' | 'thaw doctor' | 'thaw version' | 'thaw schema' | 'thaw completion' | 'thaw checkpoint ls' | 'thaw checkpoint create' | 'thaw checkpoint inspect' | 'thaw checkpoint verify' | 'thaw checkpoint compress' | 'thaw checkpoint rm' | 'thaw checkpoint retry' | 'thaw image ls' | 'thaw image import' | 'thaw image rm' | 'thaw secret set' | 'thaw secret ls' | 'thaw secret rm' | 'thaw token create' | 'thaw token ls' | 'thaw token rm') node="$node ${COMP_WORDS[i]}" ;;
    esac
  done
  case "$node $prev" in
    'thaw --host') kind=nothing ;;
    'thaw daemon --data-dir') kind=directories ;;
    'thaw daemon --listen') kind=nothing ;;
    'thaw daemon --tls-cert') kind=files ;;
    'thaw daemon --tls-key') kind=files ;;
    'thaw daemon --group') kind=nothing ;;
    'thaw daemon --log-level') values='debug info warn error off' ;;
    'thaw daemon --log-format') values='text json' ;;
    'thaw daemon --runtime') kind=files ;;
    'thaw daemon --criu') kind=directories ;;
    'thaw daemon --secrets-key') kind=files ;;
    'thaw daemon --slots') kind=nothing ;;
    'thaw daemon --checkpoint-quota') kind=nothing ;;
    'thaw daemon --verify-every') kind=nothing ;;
    'thaw daemon --checkpoint-compress-after') kind=nothing ;;
    'thaw daemon --image-quota') kind=nothing ;;
    'thaw daemon --image-size') kind=nothing ;;
    'thaw daemon --hold-connections') kind=nothing ;;
    'thaw daemon --hold-bytes') kind=nothing ;;
    'thaw daemon --hold-time') kind=nothing ;;
    'thaw daemon --idle-time') kind=nothing ;;
    'thaw daemon --half-closed-time') kind=nothing ;;
    'thaw daemon --front') kind=nothing ;;
    'thaw daemon --front-tls-cert') kind=files ;;
    'thaw daemon --front-tls-key') kind=files ;;
    'thaw daemon --front-header-time') kind=nothing ;;
    'thaw daemon --front-keep-alive-time') kind=nothing ;;
    'thaw daemon --front-stall-time') kind=nothing ;;
    'thaw daemon --hand-over-time') kind=nothing ;;
    'thaw daemon --host') kind=nothing ;;
    'thaw deploy --name') kind=nothing ;;
    'thaw deploy --image') kind=files ;;
    'thaw deploy --rootfs') kind=directories ;;
    'thaw deploy -p') kind=nothing ;;
    'thaw deploy --port') kind=nothing ;;
    'thaw deploy --checkpoint-when') kind=nothing ;;
    'thaw deploy -e') kind=nothing ;;
    'thaw deploy --env') kind=nothing ;;
    'thaw deploy -v') kind=nothing ;;
    'thaw deploy --mount') kind=nothing ;;
    'thaw deploy -u') kind=nothing ;;
    'thaw deploy --user') kind=nothing ;;
    'thaw deploy -w') kind=nothing ;;
    'thaw deploy --workdir') kind=nothing ;;
    'thaw deploy --cpu') kind=nothing ;;
    'thaw deploy --memory') kind=nothing ;;
    'thaw deploy --pids') kind=nothing ;;
    'thaw deploy --gpu') kind=nothing ;;
    'thaw deploy --min') kind=nothing ;;
    'thaw deploy --max') kind=nothing ;;
    'thaw deploy --replicas') kind=nothing ;;
    'thaw deploy --idle') kind=nothing ;;
    'thaw deploy --timeout') kind=nothing ;;
    'thaw deploy --host') kind=nothing ;;
    'thaw serve --timeout') kind=nothing ;;
    'thaw serve --host') kind=nothing ;;
    'thaw init --host') kind=nothing ;;
    'thaw ls --host') kind=nothing ;;
    'thaw ps --host') kind=nothing ;;
    'thaw logs -n') kind=nothing ;;
    'thaw logs --tail') kind=nothing ;;
    'thaw logs --since') kind=nothing ;;
    'thaw logs --host') kind=nothing ;;
    'thaw exec --host') kind=nothing ;;
    'thaw scale --timeout') kind=nothing ;;
    'thaw scale --host') kind=nothing ;;
    'thaw stop --host') kind=nothing ;;
    'thaw rm --host') kind=nothing ;;
    'thaw events --pod') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw events --after') kind=nothing ;;
    'thaw events --host') kind=nothing ;;
    'thaw trace --host') kind=nothing ;;
    'thaw checkpoint --host') kind=nothing ;;
    'thaw checkpoint ls --pod') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw checkpoint ls --host') kind=nothing ;;
    'thaw checkpoint create --host') kind=nothing ;;
    'thaw checkpoint inspect --host') kind=nothing ;;
    'thaw checkpoint verify --host') kind=nothing ;;
    'thaw checkpoint compress --host') kind=nothing ;;
    'thaw checkpoint rm --host') kind=nothing ;;
    'thaw checkpoint retry --host') kind=nothing ;;
    'thaw image --host') kind=nothing ;;
    'thaw image ls --host') kind=nothing ;;
    'thaw image import --host') kind=nothing ;;
    'thaw image rm --host') kind=nothing ;;
    'thaw secret --host') kind=nothing ;;
    'thaw secret set --file') kind=files ;;
    'thaw secret set --host') kind=nothing ;;
    'thaw secret ls --host') kind=nothing ;;
    'thaw secret rm --host') kind=nothing ;;
    'thaw token --host') kind=nothing ;;
    'thaw token create --scope') values='read deploy admin' ;;
    'thaw token create --workspace') kind=nothing ;;
    'thaw token create --folder') kind=nothing ;;
    'thaw token create --host') kind=nothing ;;
    'thaw token ls --host') kind=nothing ;;
    'thaw token rm --host') kind=nothing ;;
    'thaw doctor --data-dir') kind=directories ;;
    'thaw doctor --runtime') kind=files ;;
    'thaw doctor --criu') kind=directories ;;
    'thaw doctor --host') kind=nothing ;;
    'thaw version --host') kind=nothing ;;
    'thaw schema --host') kind=nothing ;;
    'thaw completion --host') kind=nothing ;;
  esac
  if [[ -z $values && -z $kind ]]; then
    case "$node" in
    'thaw') offers='daemon deploy serve init ls ps logs exec scale stop rm events trace checkpoint image secret token doctor version schema completion --host -h --help' ;;
    'thaw daemon') offers='--data-dir --listen --tls-cert --tls-key --group --log-level --log-format --runtime --criu --secrets-key --slots --checkpoint-quota --verify-every --checkpoint-compress-after --image-quota --image-size --hold-connections --hold-bytes --hold-time --idle-time --half-closed-time --front --front-tls-cert --front-tls-key --front-header-time --front-keep-alive-time --front-stall-time --replace --hand-over-time --stop-replicas-on-exit --host -h --help' ;;
    'thaw deploy') offers='--name --image --rootfs -p --port --checkpoint-when -e --env -v --mount -u --user -w --workdir --cpu --memory --pids --gpu --min --max --replicas --idle --wait --no-wait --timeout --dry-run --json -q --quiet --host -h --help' ;;
    'thaw serve') offers='--timeout --host -h --help' ;;
    'thaw init') offers='--host -h --help' ;;
    'thaw ls') offers='--json -q --quiet --host -h --help' ;;
    'thaw ps') offers='-a --all --json -q --quiet --host -h --help' ;;
    'thaw logs') offers='-f --follow -n --tail --since -t --timestamps --host -h --help' ;;
    'thaw exec') offers='-i --interactive -t --tty --host -h --help' ;;
    'thaw scale') offers='-w --wait --timeout --json --host -h --help' ;;
    'thaw stop') offers='--host -h --help' ;;
    'thaw rm') offers='-f --force --host -h --help' ;;
    'thaw events') offers='-f --follow --pod --after --json --host -h --help' ;;
    'thaw trace') offers='--chrome --host -h --help' ;;
    'thaw checkpoint') offers='ls create inspect verify compress rm retry --host -h --help' ;;
    'thaw checkpoint ls') offers='--json -q --quiet --pod --host -h --help' ;;
    'thaw checkpoint create') offers='--json --host -h --help' ;;
    'thaw checkpoint inspect') offers='--host -h --help' ;;
    'thaw checkpoint verify') offers='--all --host -h --help' ;;
    'thaw checkpoint compress') offers='--host -h --help' ;;
    'thaw checkpoint rm') offers='--host -h --help' ;;
    'thaw checkpoint retry') offers='--host -h --help' ;;
    'thaw image') offers='ls import rm --host -h --help' ;;
    'thaw image ls') offers='--json -q --quiet --host -h --help' ;;
    'thaw image import') offers='--json --host -h --help' ;;
    'thaw image rm') offers='--host -h --help' ;;
    'thaw secret') offers='set ls rm --host -h --help' ;;
    'thaw secret set') offers='--file --host -h --help' ;;
    'thaw secret ls') offers='--json -q --quiet --host -h --help' ;;
    'thaw secret rm') offers='--host -h --help' ;;
    'thaw token') offers='create ls rm --host -h --help' ;;
    'thaw token create') offers='--scope --workspace --folder --host -h --help' ;;
    'thaw token ls') offers='--json -q --quiet --host -h --help' ;;
    'thaw token rm') offers='--host -h --help' ;;
    'thaw doctor') offers='--json --data-dir --runtime --criu --host -h --help' ;;
    'thaw version') offers='--json --host -h --help' ;;
    'thaw schema') offers='--host -h --help' ;;
    'thaw completion') offers='--host -h --help' ;;
    esac
    if [[ $cur != -* ]]; then
      case "$node" in
    'thaw deploy') kind=files ;;
    'thaw serve') kind=files ;;
    'thaw init') kind=directories ;;
    'thaw ps') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw logs') values=$(thaw ps -q 2>/dev/null; thaw ls -q 2>/dev/null) ;;
    'thaw exec') values=$(thaw ps -q 2>/dev/null; thaw ls -q 2>/dev/null) ;;
    'thaw scale') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw stop') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw rm') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw trace') values=$(thaw ps -q 2>/dev/null; thaw ls -q 2>/dev/null) ;;
    'thaw checkpoint create') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw checkpoint inspect') values=$(thaw checkpoint ls -q 2>/dev/null) ;;
    'thaw checkpoint verify') values=$(thaw checkpoint ls -q 2>/dev/null) ;;
    'thaw checkpoint compress') values=$(thaw checkpoint ls -q 2>/dev/null) ;;
    'thaw checkpoint rm') values=$(thaw checkpoint ls -q 2>/dev/null) ;;
    'thaw checkpoint retry') values=$(thaw ls -q 2>/dev/null) ;;
    'thaw image import') kind=files ;;
    'thaw image rm') values=$(thaw image ls -q 2>/dev/null) ;;
    'thaw completion') values='bash zsh fish' ;;
      esac
    fi
  fi
  case "$kind" in
  files) COMPREPLY=($(compgen -f -W "$offers" -- "$cur")) ;;
  directories) COMPREPLY=($(compgen -d -- "$cur")) ;;
  nothing) ;;
  *) COMPREPLY=($(compgen -W "$offers $values" -- "$cur")) ;;
  esac
}
complete -o filenames -F _thaw thaw
