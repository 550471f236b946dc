package hostile

import (
	"crypto/tls"
	"encoding/pem"
	"time"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
)

// Certificate makes an authority and a certificate of it for 127.0.0.1, which is
// valid until the given time. The authority comes as PEM.
func Certificate(until time.Time) (authority []byte, config *tls.Config, err error) {
	ca, caKey, err := collector.Certificate("the test's authority", time.Now().Add(time.Hour), nil, nil)
	if err != nil {
		return nil, nil, err
	}
	leaf, key, err := collector.Certificate("the test's collector", until, ca, caKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}),
		&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}, nil
}
