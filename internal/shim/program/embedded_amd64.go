//go:build embedded

package program

import _ "embed"

//go:embed instance_amd64.gz
var compressed string

//go:embed instance_amd64.sum
var sum string

var embedded = payload{compressed, sum}
