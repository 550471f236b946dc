//go:build embedded

package program

import _ "embed"

//go:embed instance_arm64.gz
var compressed string

//go:embed instance_arm64.sum
var sum string

var embedded = payload{compressed, sum}
