# fish completion of mapctl: asks mapctl itself what there is; where that is nothing, files are offered.
function __mapctl_offers
    set -l words (commandline -opc) (commandline -ct)
    mapctl complete $words[2..-1] 2>/dev/null
end
complete -c mapctl -f -n 'test -n "$(__mapctl_offers)"' -a '(__mapctl_offers)'
complete -c mapctl -F -n 'test -z "$(__mapctl_offers)"'
