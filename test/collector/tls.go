package collector

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Client is whom the certificate of [Files] is for.
const Client = "shim"

// Files are those that a client of a collector with TLS needs, in PEM.
type Files struct {
	Roots, Certificate, Key string
}

// NewTLS makes an authority with certificates for a collector, which asks for one of
// its clients, and for a client, whose files are put into dir.
func NewTLS(dir string) (*tls.Config, Files, error) {
	until := time.Now().Add(24 * time.Hour)
	ca, caKey, err := Certificate("authority", until, nil, nil)
	if err != nil {
		return nil, Files{}, err
	}
	server, serverKey, err := Certificate("collector", until, ca, caKey)
	if err != nil {
		return nil, Files{}, err
	}
	client, clientKey, err := Certificate(Client, until, ca, caKey)
	if err != nil {
		return nil, Files{}, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(clientKey)
	if err != nil {
		return nil, Files{}, err
	}
	files := Files{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem")}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{files.Roots, "CERTIFICATE", ca.Raw}, {files.Certificate, "CERTIFICATE", client.Raw}, {files.Key, "PRIVATE KEY", key}} {
		if err := os.WriteFile(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			return nil, Files{}, err
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}},
		ClientCAs:    roots,
		ClientAuth:   tls.VerifyClientCertIfGiven,
		MinVersion:   tls.VersionTLS12,
	}, files, nil
}

// Certificate makes one for 127.0.0.1 that is valid until the given time, which may have
// been: signed by ca, or by itself as an authority when that is nil.
func Certificate(name string, until time.Time, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     until,
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:     []string{"localhost"},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ca == nil {
		ca, caKey = template, key
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}
