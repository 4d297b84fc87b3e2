# bash completion of mapctl: asks mapctl itself what there is; where that is nothing, files are offered.
_mapctl() {
  local IFS=$'\n'
  mapfile -t COMPREPLY < <(mapctl complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f 1)
}
complete -o default -F _mapctl mapctl
